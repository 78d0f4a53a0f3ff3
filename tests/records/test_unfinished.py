"""What a stopped run has computed of a suite is kept in chunks, and a resumed one gives the same numbers to the bit."""

import json
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from bench.console.progress import Bar
from bench.model import lm_eval_adapter, log_likelihood, sampling
from bench.model.decoding import Sampling
from bench.model.generation_cache import Generations
from bench.model.lm import Request
from bench.model.lm_eval_adapter import SteeredLM
from bench.model.log_likelihood import likelihoods
from bench.model.sampling import continuations
from bench.records import unfinished
from bench.scorers import base
from bench.scorers.hf_classifier import HFClassifier
from tests.tiny import tiny_lm

PROMPTS = [f"{words} number {number}" for number in range(4) for words in ("People walk", "The quick brown fox", "A")]
SETTINGS = Sampling(max_new_tokens=5, seed=3, batch_size=5)
TEXTS = [f"{word} {number}" for number in range(20) for word in ("love", "hate and more", "", "bread or so much of it")]


class Power(Exception):  # noqa: N818  it goes out
    """The run ends here."""


@dataclass(frozen=True)
class Lengths:
    """Scores a text by its length and by how many are judged with it, as padding moves the last bits."""

    name: str = "lengths"
    measures: str = "toxicity"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def batches(self, completions):
        return base.by_length(completions, 3)

    def __call__(self, prompts, completions):
        return [None if "7" in text else len(text) / 100 + len(completions) / 1e6 for text in completions]


def texts(batch_size: int = 5):
    return continuations(tiny_lm(), PROMPTS, 2, replace(SETTINGS, batch_size=batch_size))


def logprobs(batch_size: int = 2):
    lm = replace(tiny_lm(), sampling=Sampling(batch_size=batch_size))
    requests = [Request(lm.encode(prompt), lm.encode(more)[1:]) for prompt in PROMPTS for more in (" and", " or not")]
    return likelihoods(lm, requests)


def answers(batch_size: int = 2):
    lm = replace(tiny_lm(), sampling=Sampling(batch_size=batch_size))
    asked = {"until": ["fox"], "max_gen_toks": 6, "do_sample": True, "temperature": 0.9}
    requests = [Instance("generate_until", {}, (prompt, asked), number) for number, prompt in enumerate(PROMPTS)]
    return SteeredLM(lm).generate_until(requests)


def scores(batch_size: int = 3):
    del batch_size
    return base.unique_scores(Lengths(), [""] * len(TEXTS), TEXTS)


WORK = {
    "texts": (texts, sampling, "_decode"),
    "logprobs": (logprobs, log_likelihood, "_read"),
    "answers": (answers, lm_eval_adapter.SteeredLM, "_decode"),
    "scores": (scores, base, "scores"),
}


@contextmanager
def counted(monkeypatch, name: str, most: float = float("inf")):
    """How often a batch is computed inside the block; at one more than `most` the run ends."""
    _, where, function = WORK[name]
    real, calls = getattr(where, function), []

    def once(*args: Any, **more: Any) -> Any:
        if len(calls) >= most:
            raise Power
        calls.append(1)
        return real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(where, function, once)
        yield calls


@pytest.fixture(params=list(WORK))
def name(request) -> str:
    return str(request.param)


def test_a_resumed_run_computes_the_rest_alone_to_the_same_bits(name, tmp_path, monkeypatch):
    work = WORK[name][0]
    whole = work()
    with counted(monkeypatch, name) as all_of_it:
        assert work() == whole
    assert len(all_of_it) > 3
    done = 0
    for most in (2, 1, 0):
        with counted(monkeypatch, name, most) as calls, suppress(Power), unfinished.keeping(tmp_path):
            work()
        done += len(calls)
    assert done == 3 and list(tmp_path.rglob("*.json"))
    with counted(monkeypatch, name) as rest, unfinished.keeping(tmp_path):
        assert work() == whole
    assert len(rest) == len(all_of_it) - 3
    assert not tmp_path.exists()  # what is finished needs no chunks


def test_a_resumed_run_keeps_the_plan(name, tmp_path, monkeypatch):
    """With another batch size the texts could differ by a rounding; the one that the work began with goes on."""
    if name == "scores":
        pytest.skip("the plan is the scorer's")
    work = WORK[name][0]
    with counted(monkeypatch, name, 2), suppress(Power), unfinished.keeping(tmp_path):
        work()
    with counted(monkeypatch, name) as all_of_it:
        whole = work()
    with counted(monkeypatch, name) as rest, unfinished.keeping(tmp_path):
        assert work(64) == whole
    assert len(rest) == len(all_of_it) - 2


def test_chunks_are_written_while_it_runs(name, tmp_path, monkeypatch):
    """A process that is killed says nothing: what it had computed for a while is there already."""
    monkeypatch.setattr(unfinished, "EVERY_SECONDS", 0.0)
    kept = []

    class Killed(BaseException):
        pass

    def keep(self: unfinished.Batches) -> None:
        real(self)
        kept.append(len(list(tmp_path.rglob("*.json"))))

    real = unfinished.Batches.keep
    monkeypatch.setattr(unfinished.Batches, "keep", keep)
    with counted(monkeypatch, name, 3), suppress(Power), unfinished.keeping(tmp_path):
        WORK[name][0]()
    assert kept[:3] == [1, 2, 3]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"half", b"bit"])
def test_a_damaged_chunk_is_set_aside_and_computed_again(damage, tmp_path, monkeypatch, capsys):
    whole = texts()
    with counted(monkeypatch, "texts", 2), suppress(Power), unfinished.keeping(tmp_path):
        texts()
    (chunk,) = tmp_path.rglob("*.json")
    content = chunk.read_bytes()
    other_token = content.replace(b"]]", b", 3]]", 1)
    chunk.write_bytes({b"half": content[: len(content) // 2], b"bit": other_token}.get(damage, damage))
    with counted(monkeypatch, "texts") as calls, suppress(Power):
        try:
            with unfinished.keeping(tmp_path):
                assert texts() == whole
                raise Power  # so that the folder stays
        except Power:
            assert len(calls) == 5
    told = capsys.readouterr().err
    assert told.count("warning: ") == 1 and chunk.name in told and "is set aside" in told
    assert chunk.with_name(f".{chunk.name}.damaged").exists()


def test_of_other_code_nothing_is_taken(tmp_path, monkeypatch):
    with counted(monkeypatch, "texts", 2), suppress(Power), unfinished.keeping(tmp_path):
        texts()
    monkeypatch.setattr(unfinished, "_code", lambda files: f"other {sorted(files)}")
    with counted(monkeypatch, "texts") as calls, unfinished.keeping(tmp_path):
        texts()
    assert len(calls) == 5


def test_the_code_of_a_plug_in_counts(tmp_path):
    """A student mends the method and runs again: what the old code computed is not mixed in."""
    file = tmp_path / "mine.py"
    file.write_text("a = 1")
    first = unfinished._code(frozenset([str(file)]))
    file.write_text("a = 2")
    unfinished._code.cache_clear()  # as in a new process
    assert unfinished._code(frozenset([str(file)])) != first
    assert unfinished._code(frozenset([str(Path(__file__))])) != unfinished._code(frozenset())


def test_other_inputs_are_other_work(tmp_path, monkeypatch):
    with counted(monkeypatch, "texts", 2), suppress(Power), unfinished.keeping(tmp_path):
        texts()
    for other in (
        lambda: continuations(tiny_lm(), PROMPTS, 2, replace(SETTINGS, seed=4)),
        lambda: continuations(tiny_lm(), [*PROMPTS, "One more"], 2, SETTINGS),
        lambda: continuations(replace(tiny_lm(), steering_identity={"fit": "x"}), PROMPTS, 2, SETTINGS),
        lambda: continuations(replace(tiny_lm(), identity={"path": "other"}), PROMPTS, 2, SETTINGS),
    ):
        expected = other()
        with counted(monkeypatch, "texts") as calls, suppress(Power):
            with unfinished.keeping(tmp_path):
                assert other() == expected
                raise Power
        assert len(calls) >= 5


def test_nothing_is_kept_where_nobody_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY_SECONDS", 0.0)
    with unfinished.keeping(tmp_path / "outer"), unfinished.keeping(None):
        texts()
        assert not list(tmp_path.rglob("*.json"))
    texts()
    assert not list(tmp_path.rglob("*.json"))


def test_a_full_disk_costs_the_chunks_and_not_the_run(tmp_path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    whole = texts()
    monkeypatch.setattr(unfinished, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(unfinished.atomic, "write_whole", full)
    with unfinished.keeping(tmp_path):
        assert texts() == whole
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_two_processes_do_the_same_work(tmp_path, monkeypatch):
    """Each has chunks of its own, and what both have computed is the same."""
    whole = texts()
    monkeypatch.setattr(unfinished, "EVERY_SECONDS", 0.0)
    with counted(monkeypatch, "texts", 3), suppress(Power), unfinished.keeping(tmp_path):
        texts()
    first = list(tmp_path.rglob("*.json"))
    for path in first:
        path.rename(path.with_suffix(".away"))
    with counted(monkeypatch, "texts", 2), suppress(Power), unfinished.keeping(tmp_path):
        texts()
    for path in first:
        path.with_suffix(".away").rename(path)
    with counted(monkeypatch, "texts") as calls, unfinished.keeping(tmp_path):
        assert texts() == whole
    assert len(calls) == 2


def test_what_is_kept_counts_as_no_work_that_is_left(tmp_path, monkeypatch):
    """The time left is then that of the rest."""
    with counted(monkeypatch, "texts", 3), suppress(Power), unfinished.keeping(tmp_path):
        texts()
    with Bar({"a": 1000.0, "b": 500.0}) as bar, unfinished.keeping(tmp_path):
        with bar.stage("a", "label"):
            texts()
            left = bar.progress.tasks[bar.task].total
            assert left is not None and 1500 - left > 50
        assert bar.done == left - 500


def test_the_store_of_texts_goes_on_and_leaves_nothing(tmp_path, monkeypatch):
    lm = replace(tiny_lm(), sampling=SETTINGS)
    whole = continuations(lm, PROMPTS, 2, SETTINGS)
    store = Generations(tmp_path / "generations")
    with counted(monkeypatch, "texts", 2), suppress(Power):
        store.generate(lm, PROMPTS, 2)
    assert len(list((tmp_path / "unfinished").glob("*/*/*.json"))) == 1
    with counted(monkeypatch, "texts") as calls:
        assert [[tuple(one[:3]) for one in row] for row in store.generate(lm, PROMPTS, 2).read()] == [
            [(one.text, one.ended, list(one.tokens or [])) for one in row] for row in whole
        ]
    assert len(calls) == 3 and not list((tmp_path / "unfinished").iterdir())


def test_texts_are_judged_in_the_same_batches_as_before():
    """The batches of the whole list, not of what is given at a time: the padding moves the last bits."""
    texts_of = ["one", "two words", "", "three words here", "a", "b c", "  "]
    plan = HFClassifier.batches(replace_batch(2), texts_of)
    assert plan == [[2, 6], [4, 0], [5, 1], [3]]
    assert [[texts_of[i] for i in rows] for rows in plan][2] == ["b c", "two words"]


def replace_batch(size: int) -> Any:
    class Sized:
        batch_size = size

    return Sized()


def test_a_scorer_whose_batches_lose_a_text_is_refused():
    class Loses(Lengths):
        def batches(self, completions):
            return [[0], [0, 1]]

    with pytest.raises(base.SetupError, match="do not hold each of 2 texts once"):
        base.unique_scores(Loses(), ["", ""], ["a", "b"])


def test_what_a_stopped_run_says(tmp_path):
    assert unfinished.told(tmp_path, 0) == "nothing had been computed yet; the same command starts from the beginning"
    assert unfinished.told(tmp_path, 2).startswith("2 finished results are kept; the same command")
    for name in ("id", "other"):
        (tmp_path / f"unfinished/{name}/work-5").mkdir(parents=True)
        (tmp_path / f"unfinished/{name}/work-5/0.json").write_text(json.dumps({}))
    assert unfinished.told(tmp_path, 0).startswith("nothing had been computed yet")  # these are of another cell
    with suppress(Power), unfinished.keeping(tmp_path / "unfinished/id"):
        raise Power
    assert "1 finished result is kept and unfinished work is kept, except" in unfinished.told(tmp_path, 1)


@pytest.mark.parametrize("name", ["5 (copy)", "0", "-3", "x", ""])
def test_folders_of_other_names_are_left_alone(name, tmp_path, monkeypatch):
    """A program that syncs folders may make copies with such names, which hold nothing of this run."""
    whole = texts()
    with counted(monkeypatch, "texts", 2), suppress(Power), unfinished.keeping(tmp_path):
        texts()
    (work,) = tmp_path.iterdir()
    work.rename(work.with_name(f"{work.name.removesuffix('-5')}-{name}"))
    with unfinished.keeping(tmp_path):
        assert texts() == whole


def test_the_whole_package_of_a_plug_in_is_its_code(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("")
    (tmp_path / "mine/helper.py").write_text("a = 1")
    (tmp_path / "mine/method.py").write_text(
        "from dataclasses import dataclass\nfrom typing import Any\n\n@dataclass\nclass Inner:\n    part: Any = None\n"
    )
    (tmp_path / "alone.py").write_text("from mine.method import Inner\nclass Alone(Inner):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from alone import Alone
    from mine.method import Inner

    package = {str(path) for path in (tmp_path / "mine").glob("*.py")}
    assert unfinished.code_files([Inner()]) == package
    assert unfinished.code_files([Alone()]) == package | {str(tmp_path / "alone.py")}  # its base class as well

    @dataclass(frozen=True)
    class Stack:
        parts: Any

    Stack.__module__ = "methods.stack"
    assert unfinished.code_files([Stack({"first": [Inner()]})]) == package
    assert unfinished.code_files([Lengths(), object(), None, 3]) == unfinished.code_files([Lengths()])


def test_the_code_of_the_whole_project_names_what_is_kept():
    import bench.suites.rtp as suite
    import methods.caa as method

    assert {suite.__file__, method.__file__, unfinished.__file__} < unfinished.project_files()
