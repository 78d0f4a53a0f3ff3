"""Which commit a hub model's branch is. The hub is a stand-in here, and only here: no hub can be reached."""

from types import SimpleNamespace

import huggingface_hub
import pytest
from omegaconf import OmegaConf

from bench.model import checkpoint
from bench.run import validate
from methods.errors import SetupError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch):
    """What is asked of the hub, which answers with COMMIT."""
    asked = []

    def model_info(name, *, revision, timeout):
        asked.append((name, revision))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    checkpoint.commit.cache_clear()
    yield asked
    checkpoint.commit.cache_clear()


def node(revision):
    return OmegaConf.create({"wheel": None, "path": None, "id": "a/b", "revision": revision})


def test_a_branch_becomes_its_commit_and_is_asked_once(hub):
    assert checkpoint.identity(node("main")) == {"id": "a/b", "revision": COMMIT}
    checkpoint.identity(node("main"))
    assert hub == [("a/b", "main")]


def test_a_commit_is_not_asked(hub):
    assert checkpoint.identity(node(COMMIT[::-1])) == {"id": "a/b", "revision": COMMIT[::-1]}
    assert hub == []


def test_offline_is_told_what_to_set(hub):
    with pytest.raises(SetupError, match="model.revision=main .* runtime.offline is set.*model.revision=COMMIT"):
        checkpoint.identity(node("main"), offline=True)
    assert hub == []


def test_a_hub_that_does_not_answer_is_told_what_to_set(monkeypatch):
    def nobody(name, *, revision, timeout):
        raise ConnectionError("nobody there\nsecond line")

    monkeypatch.setattr(huggingface_hub, "model_info", nobody)
    checkpoint.commit.cache_clear()
    with pytest.raises(SetupError, match=r"a/b \(nobody there\); set model.revision=COMMIT") as caught:
        checkpoint.identity(node("main"))
    assert "\n" not in str(caught.value)


def test_the_commit_names_the_record_and_is_what_is_loaded(hub, monkeypatch):
    from bench.run import cell as cells

    loaded = []

    def load_lm(path, *, revision, **rest):
        loaded.append((path, revision))
        raise SetupError("far enough")

    monkeypatch.setattr(cells, "load_lm", load_lm)
    cell = cells.Cell(validate.validate(["model=gpt2_medium"]), cells.Session())
    assert cell.names.model["revision"] == COMMIT
    with pytest.raises(SetupError, match="far enough"):
        _ = cell.lm
    assert loaded == [("openai-community/gpt2-medium", COMMIT)]
