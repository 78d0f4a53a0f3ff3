"""Hashes of large files that stay in place, kept between processes, so that 16 GB of weights are hashed only once."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import platformdirs

from bench.files.atomic import write_whole
from bench.files.digests import file_sha256

LARGE = 2**26  # bytes; hashing this much takes less than a tenth of a second


def default_cache() -> Path:
    """Return the folder for wheels and for files made from them: STEERBENCH_CACHE, or the platform's cache folder."""
    return Path(os.environ.get("STEERBENCH_CACHE") or platformdirs.user_cache_dir("steerbench"))


def cache_folder(named: str | None) -> Path:
    """Return the folder that `runtime.cache` names; null names the default one."""
    return Path(named) if named else default_cache()


def kept_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex; a large file is read once while its size, times and inode are the same."""
    stat = path.stat()
    if stat.st_size < LARGE:
        return file_sha256(path)
    whole = str(path.resolve())
    state = [whole, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    place = default_cache() / "digests" / f"{hashlib.sha256(whole.encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept["of"] == state and isinstance(kept["sha256"], str):
            return kept["sha256"]
    digest = file_sha256(path)
    with suppress(OSError):  # a cache that cannot be written: then it is read again the next time
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, json.dumps({"of": state, "sha256": digest}) + "\n")
    return digest
