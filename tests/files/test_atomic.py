"""Files and folders that are whole or not there, whoever else writes, and what dead processes leave behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from bench.data import wheels
from bench.files import atomic
from bench.records import record
from bench.records.record import Record
from tests.records.test_record import FACTS, ID, ITEMS

WRITER = """
import sys
from pathlib import Path
from bench.files import atomic
target = Path(sys.argv[1])
for number in range(int(sys.argv[2])):
    with atomic.whole_folder(target) as folder:
        for name in "abc":
            (folder / name).write_text("the same")
print("done")
"""
HANGS = """
import sys, time
from pathlib import Path
from bench.files import atomic
with atomic.temporary_folder(Path(sys.argv[1]), "wheel.whl") as folder, atomic.temporary_folder():
    (folder / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(600)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_concurrent_writers_never_hide_a_file_from_a_reader(tmp_path):
    target = tmp_path / "results" / "id"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(target), "60"], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    while not target.exists():
        time.sleep(0.001)
    reads = 0
    while any(one.poll() is None for one in writers):
        assert {path.name: path.read_text() for path in target.iterdir()} == dict.fromkeys("abc", "the same")
        reads += 1
    assert reads > 10
    assert [one.communicate()[0] for one in writers] == ["done\n"] * 4
    assert [path.name for path in target.parent.iterdir()] == ["id"]


def test_the_first_stays_and_the_second_vanishes(tmp_path):
    for content in ("first", "second"):
        with atomic.whole_folder(tmp_path / "id") as folder:
            (folder / "file").write_text(content)
    assert (tmp_path / "id/file").read_text() == "first"
    assert names(tmp_path) == ["id"]


def test_replacing_is_asked_for(tmp_path):
    for content in ("first", "second"):
        with atomic.whole_folder(tmp_path / "id", replace=True) as folder:
            (folder / "file").write_text(content)
    assert (tmp_path / "id/file").read_text() == "second"
    assert names(tmp_path) == ["id"]


@pytest.mark.parametrize("kind", ["half", "file", "link"])
def test_what_is_not_whole_is_set_aside(kind, tmp_path):
    target, other = tmp_path / "id", tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("somebody's")
    {"half": target.mkdir, "file": target.touch, "link": lambda: target.symlink_to(other)}[kind]()
    if kind == "half":
        (target / "some").touch()
    with atomic.whole_folder(target, ["file"]) as folder:
        (folder / "file").write_text("ours")
    assert (target / "file").read_text() == "ours" and not target.is_symlink()
    assert names(tmp_path) == [".id.damaged", "id", "other"]
    assert (other / "file").read_text() == "somebody's"


def test_names_of_what_is_set_aside_do_not_clash(tmp_path):
    for _ in range(3):
        (tmp_path / "id").mkdir()
        atomic.set_aside(tmp_path / "id")
    assert names(tmp_path) == [".id.damaged", ".id.damaged-2", ".id.damaged-3"]
    assert atomic.set_aside(tmp_path / "id") is None


def test_a_whole_record_stays_and_a_broken_one_is_set_aside(tmp_path):
    records = tmp_path / "records"
    first = record.write(records, Record.from_json(FACTS | {"cost": {"relative_speed": 1.0}}), ITEMS, ITEMS)
    again = Record.from_json(FACTS | {"cost": {"relative_speed": 0.9}})  # as the slower of two processes
    assert record.write(records, again, ITEMS, ITEMS) == first
    other = record.write(records, Record.from_json(FACTS | {"x": 2}), ITEMS, ITEMS)
    assert other.to_json()["x"] == 2  # another result in its place
    (records / ID / "items.parquet").write_bytes(b"cut")
    third = record.write(records, Record.from_json(FACTS | {"x": 3}), ITEMS, ITEMS)
    assert third.to_json()["x"] == 3 and record.read(records / ID) == third
    assert names(records) == [ID] and (tmp_path / f".{ID}.damaged/items.parquet").read_bytes() == b"cut"
    pd.testing.assert_frame_equal(record.table(records / ID, "items"), ITEMS)


def test_a_folder_that_vanishes_in_the_moment_of_writing(tmp_path, monkeypatch):
    """Another process has finished the work and removes the folder of its chunks."""
    real, calls = atomic._write, []

    def once(target: Path, content: str | bytes) -> None:
        calls.append(1)
        if len(calls) == 1:
            shutil.rmtree(target.parent)
            raise FileNotFoundError(2, "No such file or directory")
        real(target, content)

    (tmp_path / "work").mkdir()
    monkeypatch.setattr(atomic, "_write", once)
    atomic.write_whole(tmp_path / "work/0.json", "{}")
    assert (tmp_path / "work/0.json").read_text() == "{}"


def hanging(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HANGS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_leftovers_of_killed_processes_alone_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    folder = tmp_path / "wheels"
    dead, alive = hanging(folder), hanging(folder)
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert len(names(folder)) == len(names(tmp_path / "tmp")) == 2
        assert len(atomic.sweep(folder)) == 2
        assert len(names(folder)) == len(names(tmp_path / "tmp")) == 1
    finally:
        alive.kill()
        alive.wait()
    atomic.sweep(folder)
    assert names(folder) == names(tmp_path / "tmp") == []


def test_only_leftovers_of_older_versions_are_removed(tmp_path):
    for name in (".convert-abc", ".fetch-x1", "wheel", ".hidden", ".id.damaged", ".film.mkv.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / f".leaderboard.csv.{atomic.HOST}.abcd0_12{atomic.SUFFIX}").touch()
    (tmp_path / f".other.some-other-host.abcd0_12{atomic.SUFFIX}").touch()  # whose locks cannot be seen from here
    atomic.sweep(tmp_path)
    assert names(tmp_path) == [
        ".film.mkv.part", ".hidden", ".id.damaged", ".other.some-other-host.abcd0_12.part", "wheel",
    ]  # fmt: skip
    os.utime(tmp_path / ".film.mkv.part", (0, 0))
    os.utime(tmp_path / ".other.some-other-host.abcd0_12.part", (0, 0))
    atomic.sweep(tmp_path)
    assert names(tmp_path) == [".film.mkv.part", ".hidden", ".id.damaged", "wheel"]


def test_a_download_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    with pytest.raises(wheels.SetupError, match="pip could not download"):
        wheels.fetch("a==1", "a-1-py3-none-any.whl", "0" * 64, tmp_path)
    assert names(tmp_path / "wheels") == []


def test_a_start_does_not_disturb_what_is_just_being_created(tmp_path):
    """Between a thing's creation and its lock another process may sweep; the writer then takes another name."""
    end = time.monotonic() + 1
    script = "import sys, time\nfrom pathlib import Path\nfrom bench.files import atomic\nprint('ready', flush=True)\n"
    script += "end = time.monotonic() + 1.2\nwhile time.monotonic() < end:\n    atomic.sweep(Path(sys.argv[1]))"
    sweeper = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert sweeper.stdout is not None and sweeper.stdout.readline() == "ready\n"
    rounds = 0
    while time.monotonic() < end or rounds < 20:
        with atomic.whole_folder(tmp_path / f"folder{rounds}") as folder:
            (folder / "x").write_text("x")
        atomic.write_whole(tmp_path / f"file{rounds}", "x")
        rounds += 1
    sweeper.wait()
    assert all((tmp_path / f"folder{i}/x").is_file() and (tmp_path / f"file{i}").is_file() for i in range(rounds))


def test_what_was_set_aside_is_told(tmp_path, capsys):
    (tmp_path / "id").symlink_to("id")
    with atomic.whole_folder(tmp_path / "id") as folder:
        (folder / "file").touch()
    assert f"warning: {tmp_path / 'id'} is not whole; it is set aside as .id.damaged" in capsys.readouterr().err
