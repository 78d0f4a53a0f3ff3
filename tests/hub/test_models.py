"""A model of the hub, from its name to its numbers."""

import json
import shutil

import pytest
from omegaconf import OmegaConf

from bench.model import checkpoint
from bench.run import validate
from bench.run.cell import Cell
from bench.run.session import Session
from methods.errors import SetupError
from tests.hub.conftest import forget
from tests.tiny import tiny_model, tiny_tokenizer

NAME = "org/tiny"


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer("none").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def node(**named):
    usual = {"wheel": None, "path": None, "id": None, "revision": "main", "bos": "none", "dtype": "float32"}
    return OmegaConf.create(usual | named)


def cell(tmp_path, *more: str) -> Cell:
    options = ["model=hub", f"model.id={NAME}", "model.revision=main", "method=unsteered", "scorer=[profanity_check]",
               f"runtime.results={tmp_path / 'results'}"]  # fmt: skip
    return Cell(validate.validate([*options, "strength=0", *more]), Session())


def test_a_model_is_fetched_at_its_commit_and_read_offline(hub, folder, tmp_path):
    commit = hub.add("models", NAME, folder)
    first = cell(tmp_path)
    text = first.model.lm.encode("The old tree")
    assert first.model.revision == commit
    forget()
    hub.asked.clear()
    hub.fails("", status=500)  # whatever is asked now fails
    again = cell(tmp_path, "runtime.offline=true")
    assert again.model.revision == commit and again.names.model == first.names.model
    assert again.model.lm.encode("The old tree") == text
    assert hub.asked == []


def test_a_branch_that_moves_is_followed_online_and_kept_offline(hub, folder, tmp_path):
    old = hub.add("models", NAME, folder)
    named = checkpoint.identity(node(id=NAME))
    tiny_model("gpt2").save_pretrained(folder)
    new = hub.add("models", NAME, folder)
    forget()
    assert checkpoint.identity(node(id=NAME), offline=True) == named
    forget()
    assert checkpoint.commit(NAME, "main") == new != old
    assert checkpoint.identity(node(id=NAME, revision=old)) == named != checkpoint.identity(node(id=NAME))


def test_a_commit_is_asked_once_in_all_processes(hub, folder):
    commit = hub.add("models", NAME, folder)
    checkpoint.identity(node(id=NAME, revision=commit))
    forget()
    hub.asked.clear()
    checkpoint.identity(node(id=NAME, revision=commit))
    assert hub.asked == []


def test_what_was_never_fetched_says_how_to_fetch_it(hub, folder):
    commit = hub.add("models", NAME, folder)
    with pytest.raises(SetupError, match="org/tiny at .* was not fetched yet, .*python -m bench.prefetch"):
        checkpoint.identity(node(id=NAME, revision=commit), offline=True)
    with pytest.raises(SetupError, match="model.revision=main is not a commit.*no earlier run has asked it"):
        checkpoint.identity(node(id=NAME), offline=True)
    assert hub.asked == []


# -- identity by content ---------------------------------------------------------------------------------------------


def test_equal_files_have_one_id_without_fetching_weights(hub, folder):
    hub.add("models", NAME, folder)
    of_hub = checkpoint.identity(node(id=NAME))
    assert of_hub == checkpoint.identity(node(path=str(folder)))
    assert set(of_hub["files"]) == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                                    "tokenizer_config.json"}  # fmt: skip
    assert not [path for path in hub.bytes_sent if "/large/" in path]


def test_shards_have_one_id_and_unused_weights_do_not_count(hub, folder):
    shutil.rmtree(folder)
    tiny_model("llama").save_pretrained(folder, max_shard_size="40KB")
    tiny_tokenizer("none").save_pretrained(folder)
    plain = checkpoint.identity(node(path=str(folder)))
    (folder / "pytorch_model.bin").write_bytes(b"the same in another form")
    (folder / "onnx").mkdir()
    (folder / "onnx/model.onnx").write_bytes(b"x")
    hub.add("models", NAME, folder)
    assert checkpoint.identity(node(id=NAME)) == checkpoint.identity(node(path=str(folder))) == plain
    assert len([name for name in plain["files"] if name.endswith(".safetensors")]) > 1
    checkpoint.fetch(node(id=NAME), folder, offline=False)
    assert not any("pytorch_model.bin" in one for one in hub.asked)


def test_a_change_of_one_weight_or_of_the_config_is_another_name(hub, folder):
    hub.add("models", NAME, folder)
    first = checkpoint.identity(node(id=NAME))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-4}))
    hub.add("models", NAME, folder)
    forget()
    second = checkpoint.identity(node(id=NAME))
    assert {name for name in first["files"] if first["files"][name] != second["files"][name]} == {"config.json"}


def test_results_under_the_old_id_go_on_under_it(hub, folder, tmp_path):
    commit = hub.add("models", NAME, folder)
    assert "files" in cell(tmp_path).names.model
    record = tmp_path / "old" / "runs" / "records" / "0123456789ab" / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"model": {"name": "x", "id": NAME, "revision": commit}}))
    named = cell(tmp_path, f"runtime.results={tmp_path / 'old'}").names.model
    assert named["id"] == NAME and named["revision"] == commit and "files" not in named
    record.write_text(json.dumps({"model": {"name": "x", "id": NAME, "revision": "f" * 40}}))
    elsewhere = tmp_path / "old" / "runs"
    elsewhere.rename(tmp_path / "runs")
    assert "files" in cell(tmp_path, f"runtime.results={tmp_path}").names.model


def test_a_cell_is_equal_from_hub_folder_and_offline(hub, folder, tmp_path):
    from bench.run import runner
    from tests.data.test_sources import make_mirror

    hub.add("models", NAME, folder)
    rows = [{"text": f"People walk along the water {i} and talk about love"} for i in range(8)]
    mirror = make_mirror(tmp_path / "mirror", "langtest/wiki_sentences", rows, split="test")
    suite = ["suite=[perplexity_wiki_sentences]", f"runtime.mirror={mirror}"]
    (of_hub,) = runner.run(cell(tmp_path, *suite))
    (of_folder,) = runner.run(
        cell(
            tmp_path,
            *suite,
            f"model.path={folder}",
            "model.id=null",
            "model.name=x",
            f"runtime.results={tmp_path / 'b'}",
        )
    )
    assert of_hub.id == of_folder.id and of_hub.metrics == of_folder.metrics
    assert of_hub.comparison == of_folder.comparison
    assert of_hub.provenance.to_json()["hub"]["id"] == NAME and "hub" not in of_folder.provenance.to_json()
