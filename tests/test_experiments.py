"""The papers' experiments: each says what it takes and what was published, and runs to its end in miniature."""

import re

import pytest
from omegaconf import OmegaConf

from bench import config
from methods.errors import SetupError

FIELDS = {"method", "metric", "value", "unsteered", "ours", "source"}
EXPERIMENTS = {path.stem: OmegaConf.load(path) for path in sorted((config.folder() / "experiment").glob("*.yaml"))}
PAPERS = [name for name, file in EXPERIMENTS.items() if "published" in file]


@pytest.mark.parametrize("experiment", PAPERS)
def test_a_published_figure_says_what_and_where(experiment):
    for figure in OmegaConf.to_container(EXPERIMENTS[experiment].published):
        assert set(figure) >= FIELDS and set(figure) <= FIELDS | {"options", "strength"}
        assert re.search(r"\barXiv \d{4}\.\d{5}\b", figure["source"])
        assert figure["ours"] is None or re.fullmatch(r"(rtp\.\w+|fluency)\.\w+", figure["ours"])
        for key in ("value", "unsteered"):
            assert figure[key] is None or isinstance(figure[key], int | float)
    assert EXPERIMENTS[experiment].differs


def test_whose_data_are_asked_is_told_what_they_are():
    with pytest.raises(SetupError, match=r"data.path has no value; set data.path=\.\.\. \(the paper has 500 answers"):
        config.validate(["experiment=model_surgery_llama2_7b_chat"])
