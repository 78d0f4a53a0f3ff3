"""Hashes that are kept between processes hold as long as the file is the same."""

import hashlib
import os

import pytest

from bench.files import digests, kept_digests
from bench.files.kept_digests import kept_sha256


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The files that were hashed."""
    found = []

    def sha256(path):
        found.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setenv("STEERBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_digests, "LARGE", 10)
    monkeypatch.setattr(digests, "sha256", sha256)
    digests._sha256.cache_clear()
    return found


def again() -> None:
    """As in a new process."""
    digests._sha256.cache_clear()


def test_a_large_file_is_read_once_and_again_when_it_changes(tmp_path, read):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x" * 20)
    first = kept_sha256(file)
    again()
    assert kept_sha256(file) == first == hashlib.sha256(b"x" * 20).hexdigest() and len(read) == 1
    again()
    before = file.stat()
    file.write_bytes(b"y" * 20)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time
    assert kept_sha256(file) == hashlib.sha256(b"y" * 20).hexdigest() != first


def test_what_is_kept_may_be_broken_or_of_another_file(tmp_path, read):
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"x" * 20)
    other.write_bytes(b"y" * 20)
    assert kept_sha256(file) != kept_sha256(other)
    for place in (tmp_path / "cache" / "digests").iterdir():
        place.write_text("{")
    again()
    assert kept_sha256(file) == hashlib.sha256(b"x" * 20).hexdigest() and len(read) == 3


def test_a_small_file_leaves_nothing_behind(tmp_path, read):
    (tmp_path / "config.json").write_bytes(b"{}")
    assert kept_sha256(tmp_path / "config.json") and not (tmp_path / "cache").exists()
