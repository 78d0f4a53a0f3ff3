"""`python -m bench.prefetch`, in processes of its own, then the sweep itself without the server."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.prefetch import __main__ as command
from bench.prefetch.fetching import Failed
from tests.hub.test_data import lines
from tests.hub.test_models import NAME
from tests.hub_server import serving
from tests.scorers.test_hf_classifier import bert
from tests.tiny import tiny_model, tiny_tokenizer

PIQA = [{"goal": f"walk {i}", "sol1": "bread", "sol2": "talk", "label": 0} for i in range(3)]
HEADER = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: validation\n    path: v.jsonl\n---\n"
SWEEP = [
    "model=hub", f"model.id={NAME}", "model.revision=main", "method=unsteered", "strength=0", "suite=[capability]",
    "suite.capability.tasks=[winogrande]", "suite.capability.documents=2", "scorer=[hf_classifier]",
    "scorer.hf_classifier.id=org/judge", "scorer.hf_classifier.label=toxic", "pairs.scorer=hf_classifier",
    "tuning.scorer=hf_classifier", "runtime.threads=1",
]  # fmt: skip


@pytest.fixture
def world(tmp_path):
    """A hub with a model, a classifier and a task's data, and the environment of a process that asks it."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer("none").save_pretrained(tmp_path / "model")
    with serving() as hub:
        hub.add("models", NAME, tmp_path / "model")
        hub.add("models", "org/judge", bert(tmp_path / "judge"))
        usual = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        folders = {"HF_HUB_CACHE": "hub", "HF_HOME": "home", "STEERBENCH_CACHE": "cache"}
        environment = usual | {name: str(tmp_path / place) for name, place in folders.items()}
        environment |= {"HF_ENDPOINT": hub.url, "OMP_NUM_THREADS": "1"}
        yield hub, environment


def run(module: str, environment, *arguments: str, good: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode == 0) == good, done.stderr[-3000:]
    return done


def winogrande(hub, tmp_path) -> None:
    """Published under the commit that is pinned here, as on the hub itself."""
    from bench.data.sources import REVISIONS

    name = "allenai/winogrande"
    rows = [{"sentence": f"The dog {i} sees _ .", "option1": "bread", "option2": "water", "answer": "1"}
            for i in range(3)]  # fmt: skip
    header = HEADER.replace(b"config_name: default", b"config_name: winogrande_xl")
    commit = hub.add("datasets", name, {"README.md": header, "v.jsonl": lines(rows)})
    repository = hub.repositories["datasets", name]
    repository.files[REVISIONS[name]] = repository.files.pop(commit)
    repository.refs["main"] = REVISIONS[name]


@pytest.mark.slow
def test_what_is_fetched_is_all_that_the_sweep_needs(world, tmp_path):
    hub, environment = world
    winogrande(hub, tmp_path)
    online = run("bench", environment, *SWEEP, f"runtime.results={tmp_path / 'online'}")
    environment |= {"HF_HUB_CACHE": str(tmp_path / "hub2"), "STEERBENCH_CACHE": str(tmp_path / "cache2")}
    manifest = tmp_path / "fetched.json"
    told = run("bench.prefetch", environment, "--manifest", str(manifest), *SWEEP)
    assert "fetched now" in told.stderr and "model.safetensors" in told.stdout
    found = json.loads(manifest.read_text())
    by_name = {(one["what"], one["file"]): one for one in found["files"]}
    weights = by_name["model org/tiny", "model.safetensors"]
    content = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert weights["sha256"] == hashlib.sha256(content).hexdigest() and weights["bytes"] == len(content)
    assert weights["commit"] == hub.repositories["models", NAME].refs["main"]
    assert {what for what, _ in by_name} == {"model org/tiny", "model org/judge", "data set allenai/winogrande"}
    assert found["bytes"] == sum(one["bytes"] for one in found["files"]) and str(tmp_path) not in manifest.read_text()

    again = run("bench.prefetch", environment, *SWEEP)
    assert "all were there" in again.stderr
    hub.asked.clear()
    hub.fails("", status=500)
    run("bench.prefetch", environment, *SWEEP, "runtime.offline=true")
    offline = run("bench", environment, *SWEEP, f"runtime.results={tmp_path / 'offline'}", "runtime.offline=true")
    assert hub.asked == []
    assert records(tmp_path / "online") == records(tmp_path / "offline")
    assert "failed" not in offline.stderr + online.stderr


def records(results: Path) -> dict[str, object]:
    found = {path.parent.name: json.loads(path.read_text())["metrics"] for path in results.rglob("record.json")}
    assert found
    return found


def test_what_fails_does_not_keep_the_rest(hub, tmp_path, capsys):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer("none").save_pretrained(tmp_path / "model")
    hub.add("models", NAME, tmp_path / "model")
    assert command.main([*SWEEP, f"--manifest={tmp_path / 'm.json'}"]) == 2
    out = capsys.readouterr()
    assert "scorer hf_classifier: the hub shows no model org/judge" in out.err
    assert "the parts above are lacking" in out.err and "model.safetensors" in out.out
    assert {one["what"] for one in json.loads((tmp_path / "m.json").read_text())["files"]} == {"model org/tiny"}


def test_detoxify_brings_its_checkpoint_and_its_base(hub, tmp_path, monkeypatch):
    """A download that was cut goes on, and what is there is read without the server."""
    from bench.scorers.detoxify import Detoxify

    content = os.urandom(200_000)
    digest = hashlib.sha256(content).hexdigest()
    hub.add("models", "bert-base-uncased", {"config.json": b"{}", "vocab.txt": b"a", "model.safetensors": b"large"})
    hub.add("models", "files/detoxify", {"toxic.ckpt": content})
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    url = f"{hub.url}/large/{digest}"
    monkeypatch.setattr("bench.scorers.detoxify._published", lambda _: (url, digest[:8]))
    scorer = Detoxify(sha256=digest)
    hub.fails("/large/", cut=50_000, times=1)
    scorer.fetch()
    assert hub.ranges == ["bytes=50000-"]
    assert [path.read_bytes() for path in (tmp_path / "torch").rglob("*") if path.is_file()] == [content]
    assert not any("safetensors" in one for one in hub.asked)
    hub.asked.clear()
    Detoxify(sha256=digest, offline=True).fetch()
    assert hub.asked == []


def test_it_takes_a_runs_arguments_and_a_dry_run_fetches_none(hub, tmp_path, capsys):
    (tmp_path / "conf/sampling").mkdir(parents=True)
    (tmp_path / "conf/sampling/mine.yaml").write_text("defaults: [greedy]\n")
    launched = ("-m", "launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=/nowhere", "seed.sample=0,1")
    for option in ("-cd", "--config-dir"):
        own = (option, str(tmp_path / "conf"), "sampling=mine", "--results", str(tmp_path / "results"))
        assert command.main([*SWEEP, *launched, *own, "runtime.dry_run=true"]) == 0
        out = capsys.readouterr()
        assert out.out.splitlines() == ["model org/tiny", "scorer hf_classifier", "suite capability"]
        assert "3 parts; runtime.dry_run=true: nothing was fetched" in out.err
    assert hub.asked == [] and not (tmp_path / "results").exists()
    assert command.main([*SWEEP, "hydra.launcher.n_jobs=2"]) == 2
    assert "needs a launcher" in capsys.readouterr().err


def test_a_manifest_without_a_name_is_refused(capsys):
    assert command.main(["method=unsteered", "--manifest"]) == 2
    assert "expected the file to write" in capsys.readouterr().err


def test_where_nothing_was_fetched_nothing_is_said_to_be_there(capsys):
    assert command._told([], [Failed("model x", "no network")]) == 2
    told = capsys.readouterr().err
    assert "nothing was fetched; the parts above are lacking" in told and "all were there" not in told
