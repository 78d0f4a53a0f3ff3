"""experiment=suites_smoke: no suite is forgotten, and what its header says of the wheels holds."""

import re

import pytest

from bench.config import compose, folders
from bench.run import validate
from bench.run.cell import Cell
from bench.run.session import Session

NAME = "suites_smoke"
HEADER = (folders.folder() / "experiment" / f"{NAME}.yaml").read_text()
(WHEELS,) = re.findall(r"^# python -m bench experiment=suites_smoke (suite=\[.*\])$", HEADER, re.MULTILINE)


def test_it_asks_every_suite_with_every_offline_scorer():
    cfg, about = compose.cell([f"experiment={NAME}"])
    needs_a_file = {"rtp_act", "fluency_act"}
    assert set(cfg.suite) == set(folders.groups()["suite"]) - needs_a_file
    classifiers = {"detoxify", "hf_classifier", "roberta_toxicity", "toxigen_roberta", "unbiased_toxic_roberta"}
    downloaded = classifiers | {"lm_judge"}
    assert set(cfg.scorer) == set(folders.groups()["scorer"]) - downloaded
    assert {one.partition(" ")[0] for one in about.sweep} == {"method=unsteered", "method=caa"}


@pytest.mark.wheel
def test_the_suites_of_its_header_find_their_data_in_wheels(tmp_path):
    """`identity` locates what a suite asks, so it raises where no source has it."""
    options = ["runtime.offline=true", f"runtime.results={tmp_path}", "method=unsteered"]
    cell = Cell(validate.validate([f"experiment={NAME}", WHEELS, *options]), Session())
    assert len(cell.parts.suites) == 13
    for suite in cell.parts.suites.values():
        assert "mirror" not in str(suite.identity("test"))
