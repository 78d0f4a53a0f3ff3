"""A cache of the tables and figures that were built last, used while the records and the code are unchanged.

`runs/built.json` holds the texts on the terminal, the sha256 of each written file, and a digest of everything that they
were made from: the files of the records, the code, and the versions of the libraries that draw and compute.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from bench.files import atomic
from bench.files.digests import sha256
from bench.leaderboard.terminal import Page, Shown
from bench.records import unfinished
from bench.records.identity import digest

FILE = "built.json"
VERSIONS = ("numpy", "pandas", "scipy", "matplotlib", "rich")


def read(results: Path) -> tuple[Shown, list[Path]] | None:
    """Return the texts to show, and the figures; None if records, code or a written file have changed since."""
    try:
        kept = json.loads((results / "runs" / FILE).read_text(encoding="utf-8"))
        if kept["made_of"] != made_of(results):
            return None
        if any(sha256(results / name) != expected for name, expected in kept["written"].items()):
            return None
        shown = Shown(
            [_page(one) for one in kept["pages"]],
            [],
            {title: results / name for title, name in kept["files"].items()},
        )
        return shown, [results / name for name in kept["figures"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(results: Path, shown: Shown, figures: Sequence[Path]) -> None:
    """Keep what was built; keep nothing if a record was skipped, so that the next command warns again."""
    if shown.skipped:
        return
    kept = {
        "made_of": made_of(results),
        "written": {_name(results, path): sha256(path) for path in (*shown.files.values(), *figures)},
        "pages": [_plain(one) for one in shown.pages],
        "files": {title: _name(results, path) for title, path in shown.files.items()},
        "figures": [_name(results, path) for path in figures],
    }
    atomic.write_whole(results / "runs" / FILE, json.dumps(kept, indent=1) + "\n")


def made_of(results: Path) -> str:
    """Return the digest of everything that tables and figures are made from."""
    records = results / "runs" / "records"
    found = [path for path in sorted(records.rglob("*")) if not path.relative_to(records).parts[0].startswith(".")]
    names = {path.relative_to(records).as_posix(): sha256(path) if path.is_file() else "folder" for path in found}
    code = {str(number): sha256(Path(path)) for number, path in enumerate(sorted(unfinished.project_files()))}
    return digest([names, code, {name: version(name) for name in VERSIONS}])


def _name(results: Path, path: Path) -> str:
    return path.relative_to(results).as_posix()


def _plain(page: Page) -> dict[str, Any]:
    """Return a page as JSON values."""
    rows = {"rows": page.rows.to_dict("split"), "suites": [[title, one.to_dict("split")] for title, one in page.suites]}
    return page._asdict() | rows


def _page(plain: dict[str, Any]) -> Page:
    suites = [(title, _frame(one)) for title, one in plain["suites"]]
    told = [(title, meaning) for title, meaning in plain["meanings"]]
    return Page(**plain | {"rows": _frame(plain["rows"]), "suites": suites, "meanings": told})


def _frame(plain: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(plain["data"], columns=plain["columns"], index=plain["index"])
