"""The papers' experiments: each says what it takes and what was published, and runs to its end in miniature."""

import re

import pytest

from bench import config

PAPERS = [name for name in config.groups()["experiment"] if config.compose([f"experiment={name}"]).published]
FIELDS = {"method", "metric", "value", "unsteered", "ours", "source"}


@pytest.mark.parametrize("experiment", PAPERS)
def test_a_published_figure_says_what_and_where(experiment):
    cfg = config.compose([f"experiment={experiment}"])
    assert cfg.differs
    for figure in cfg.published:
        assert set(figure) >= FIELDS and set(figure) <= FIELDS | {"options", "strength"}
        assert re.search(r"\barXiv \d{4}\.\d{5}\b", figure.source)
