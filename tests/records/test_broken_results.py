"""Stored results that are cut, empty or of another kind, in folders with a seal and without: set aside, made again."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pyarrow
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.__main__ import main
from bench.files import digests, plain_json
from bench.model.decoding import Continuation
from bench.model.generation_cache import FILE, _read
from bench.records.table import known
from bench.run.cell import Cell
from bench.run.fit_store import ARTEFACT
from bench.run.session import Session
from bench.run.validate import validate
from tests.model.test_broken_files import DAMAGE, damage
from tests.run.test_smoke import arguments, contents, finished, world  # noqa: F401  a fixture


def command(world: Path, results: Path) -> list[str]:  # noqa: F811
    return arguments(world, results, "method=caa", "strength=2", "suite=[rtp]")


@pytest.fixture(scope="module")
def swept(world, tmp_path_factory):  # noqa: F811
    results = tmp_path_factory.mktemp("swept")
    finished(command(world, results))
    return results


@pytest.fixture
def results(swept, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.plots.draw.rebuild", lambda *_: [])
    return shutil.copytree(swept, tmp_path / "results")


@pytest.fixture(scope="module")
def session():
    """Return a session, so that its cells load the model only once."""
    return Session()


def cell(world, results, session) -> Cell:  # noqa: F811
    return Cell(validate([one for one in command(world, results) if one != "-m"]), session)


def unseal(path: Path) -> None:
    """Remove the seal of a folder, which older versions did not write."""
    path.with_name(digests.SEAL).unlink()


# -- artefacts ---------------------------------------------------------------------------------------------------------


def made_again(world, results, session, capsys) -> str:  # noqa: F811
    """What is said while a damaged artefact is set aside and fitted again, to the same bits."""
    (folder,) = (results / "runs/artefacts").iterdir()
    good = next(iter(load_file(next((results.parent / "good").rglob("*.safetensors"))).items()))
    again = cell(world, results, session)
    artefact, fit = again.fit.fitted
    assert torch.equal(artefact[good[0]], good[1]) and "unverified" not in fit
    assert (folder.parent / f".{folder.name}.damaged").is_dir()
    told = capsys.readouterr().err
    assert str(folder) in told and f"set aside as .{folder.name}.damaged and made again" in told
    return told


@pytest.fixture
def artefact(results) -> Path:
    (path,) = (results / "runs/artefacts").glob("*/artefact.safetensors")
    tensors = {name: one for name, one in load_file(path).items() if not name.startswith("info.")}
    (results.parent / "good").mkdir()
    save_file(tensors, results.parent / "good/artefact.safetensors")
    return path


@pytest.mark.every(8)
@pytest.mark.parametrize(
    ("name", "kind", "sealed"),
    [
        *((name, kind, sealed) for name in ARTEFACT for kind in DAMAGE for sealed in (False, True)),
        *((digests.SEAL, kind, True) for kind in DAMAGE if kind != "missing"),
    ],
)
def test_a_broken_file_of_a_fit(name, kind, sealed, artefact, world, results, session, capsys):  # noqa: F811
    path = artefact.with_name(name)
    if not sealed:
        unseal(artefact)
    damage(path, kind)
    assert name in made_again(world, results, session, capsys)


def other_tensors(change):
    def rewrite(path: Path) -> None:
        tensors = load_file(path)
        name = next(one for one in tensors if not one.startswith("info."))
        save_file(change(tensors, name, tensors.pop(name)), path)

    return rewrite


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rest, name, one: rest, "does not hold the tensors"),
        (lambda rest, name, one: {}, "does not hold the tensors"),
        (lambda rest, name, one: {name: one}, "does not hold the tensors"),
        (lambda rest, name, one: {**rest, name: one[:5].clone()}, "does not hold the tensors"),
        (lambda rest, name, one: {**rest, name: one, "layers.0.direction": one.clone()}, "does not hold the tensors"),
        (lambda rest, name, one: {**rest, name: one.long()}, "does not hold the tensors"),
        (lambda rest, name, one: {**rest, name: torch.stack([one, one])}, "does not hold the tensors"),
        (lambda rest, name, one: {**rest, name: one * torch.nan}, "has entries that are not finite"),
        (lambda rest, name, one: {**rest, "layers.0.direction": one}, "does not hold what caa has fitted"),
        (lambda rest, name, one: {**rest, name: one[:, None].clone()}, "does not hold what caa has fitted"),
    ],
)
def test_tensors_that_were_not_fitted(change, message, artefact, world, results, session, capsys):  # noqa: F811
    unseal(artefact)
    other_tensors(change)(artefact)
    assert message in made_again(world, results, session, capsys)


@pytest.mark.every(8)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("facts", [1]), ("facts", None), ("facts", "x"), ("facts", {}), ("facts", {"direction_norm": "x"}),
        ("data", "x"), ("data", [1]), ("data", None), ("data", {"sources": "x"}), ("data", {"unverified": 5}),
        ("data", {"pairs": "many"}), ("seconds", "x"), ("seconds", None), ("seconds", -1), ("seconds", 10**30),
        ("artefact_bytes", "x"), ("artefact_bytes", 5), ("peak_memory_bytes", []), ("unverified", 5), ("facts", ...),
        ("data", ...), ("seconds", ...), ("artefact_bytes", ...),
    ],
)  # fmt: skip
def test_facts_of_a_fit_that_were_not_written(key, value, artefact, world, results, session, capsys):  # noqa: F811
    path = artefact.with_name("fit.json")
    fit = json.loads(path.read_text())
    path.write_text(json.dumps({**fit, key: value} if value is not ... else {k: fit[k] for k in fit if k != key}))
    unseal(artefact)
    made_again(world, results, session, capsys)


@pytest.mark.every(2)
@pytest.mark.parametrize("content", ["[" * 10**5 + "]" * 10**5, '{"seconds": NaN}', '{"seconds": 1'])
def test_facts_of_a_fit_that_are_no_json(content, artefact, world, results, session, capsys):  # noqa: F811
    artefact.with_name("fit.json").write_text(content)
    unseal(artefact)
    assert "fit.json cannot be read" in made_again(world, results, session, capsys)


def test_an_artefact_without_a_seal_that_is_whole_is_used(artefact, world, results, session, capsys):  # noqa: F811
    unseal(artefact)
    _, fit = cell(world, results, session).fit.fitted
    assert fit["unverified"] == [f"artefacts/{artefact.parent.name}"]
    assert "damaged" not in capsys.readouterr().err and not list(artefact.parent.parent.glob(".*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_cannot_be_opened(artefact, world, results, session, capsys):  # noqa: F811
    artefact.parent.chmod(0)
    try:
        cell(world, results, session).stored_fit()
    finally:
        for path in artefact.parent.parent.iterdir():
            path.chmod(0o755)
    assert "cannot be read" in capsys.readouterr().err


def test_what_cannot_be_set_aside_is_an_error_that_says_so(artefact, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    why = digests.DamagedError(f"{artefact} is cut; delete it")
    with pytest.raises(digests.DamagedError, match="is cut; delete it; it could not be set aside .Permission denied"):
        digests.set_aside(artefact.parent, why)
    monkeypatch.undo()
    shutil.rmtree(artefact.parent)  # another process was faster
    digests.set_aside(artefact.parent, why)


# -- seals -------------------------------------------------------------------------------------------------------------


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "change",
    [
        {"files": ["ab"]}, {"files": None}, {"files": {}}, {"files": {"fit.json": 5}}, {"files": {"../../x": "0"}},
        {"name": 5}, {"name": "another"}, {"verified": "no"}, {"verified": None},
    ],
)  # fmt: skip
def test_a_seal_that_was_not_written(change, artefact):
    path = artefact.with_name(digests.SEAL)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(digests.DamagedError, match=str(artefact.parent)):
        digests.verified(artefact.parent)
    path.write_text('{"files": ' + "[" * 10**5 + "]" * 10**5 + "}")
    with pytest.raises(digests.DamagedError, match=f"{path} cannot be read"):
        digests.verified(artefact.parent)


# -- texts -------------------------------------------------------------------------------------------------------------


def stored(results) -> tuple[Path, list[str], int]:
    """The file of a stored set, its prompts, and how many texts each has."""
    path = sorted((results / "runs/generations").glob(f"*/{FILE}"))[0]
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return path, [row["prompt"] for row in rows], len(rows[0]["continuations"])


@pytest.mark.every(4)
@pytest.mark.parametrize("kind", DAMAGE)
def test_texts_that_cannot_be_read(kind, results):
    path, prompts, samples = stored(results)
    unseal(path)
    damage(path, kind)
    with pytest.raises(digests.DamagedError, match=f"{path} (cannot be read|does not hold)"):
        _read(path.parent, prompts, samples)


def changed(place, value):
    """A row of which one value is another one."""

    def change(rows):
        inside = rows[0]
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = value

    return change


@pytest.mark.every(4)
@pytest.mark.parametrize(
    "change",
    [
        changed(["prompt"], 5), changed(["continuations"], None), changed(["continuations"], "ab"),
        changed(["continuations", 0], "ab"), changed(["continuations", 0], []), changed(["continuations", 0, 0], 5),
        changed(["continuations", 0, 1], None), changed(["continuations", 0, 2], "ab"),
        changed(["continuations", 0, 2], [-1]), changed(["continuations", 0, 2], [1.5]), lambda rows: rows.pop(),
        lambda rows: rows.append(5), lambda rows: rows[0].pop("continuations"),
    ],
)  # fmt: skip
def test_texts_that_were_not_written(change, results):
    path, prompts, samples = stored(results)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    change(rows)
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    unseal(path)
    with pytest.raises(digests.DamagedError, match=str(path)):
        _read(path.parent, prompts, samples)


def test_texts_of_an_older_version_are_read(results):
    path, prompts, samples = stored(results)
    assert all(isinstance(one, Continuation) for row in _read(path.parent, prompts, samples) for one in row)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        cut = ({**row, "continuations": [one[:2] for one in row["continuations"]]} for row in rows)
        lines.writelines(json.dumps(row) + "\n" for row in cut)
    unseal(path)
    assert all(one.tokens is None for row in _read(path.parent, prompts, samples) for one in row)


@pytest.mark.every(6)
@pytest.mark.parametrize(
    ("place", "kind"),
    [
        (f"generations/*/{FILE}", "half"), ("artefacts/*/artefact.safetensors", "empty"),
        ("artefacts/*/fit.json", "folder"), (f"generations/*/{FILE}", "folder"),
        ("artefacts/*/artefact.safetensors", "a pickle"), (f"generations/*/{digests.SEAL}", "folder"),
    ],
)  # fmt: skip
def test_the_same_command_computes_what_is_damaged_again(place, kind, results, world, capsys):  # noqa: F811
    before = contents(results)
    path = sorted((results / "runs").glob(place))[0]
    if path.name != digests.SEAL:
        unseal(path)
    damage(path, kind)
    shutil.rmtree(results / "runs/records")
    assert main(command(world, results)) == 0
    told = capsys.readouterr().err.replace("\n", "")
    assert str(path) in told and f"set aside as .{path.parent.name}.damaged" in told
    shutil.rmtree(path.parent.with_name(f".{path.parent.name}.damaged"))
    assert contents(results) == before
    found = [plain_json.load(one) for one in (results / "runs/records").glob("*/record.json")]
    assert found and not any("artefacts" in name for one in found for name in one["unverified"])


def test_columns_of_another_name_are_told_beside_a_whole_table():
    names, numbers = {"metric": ["m"], "item": ["a"]}, {"value": [1.0], "weight": [1.0]}
    found: dict = {}
    assert known(pyarrow.table(names | numbers), {"m": None}, found)[1] is None
    other = pyarrow.table(names | {"value": [1.0], "w": [1.0]})
    assert "has not the columns" in str(known(other, {"m": None}, found)[1])
