"""The page itself: everything from the records in one file, which loads nothing else."""

import base64
import hashlib
import itertools
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bench.console import command
from bench.console.children import Children
from bench.console.escape import visible
from bench.files.atomic import write_whole
from bench.leaderboard import formatting
from bench.leaderboard.columns import flags, headline_title, tests
from bench.leaderboard.frame import Table, tables
from bench.leaderboard.ranking import COLLAPSED, NOT_INDEPENDENT
from bench.records import titles
from bench.records.table import read_records
from bench.report import columns, images, method_page, texts
from methods.errors import SetupError

PARTS = "bench.report"  # where page.html, page.css and page.js are


class Built(NamedTuple):
    """The page that was written. skipped: a line for each unreadable record or set of texts. texts: their number."""

    path: Path
    skipped: list[str]
    texts: int


def rebuild(results: Path, *, prompts: int = texts.PROMPTS, samples: int = texts.SAMPLES, processes: int = 0) -> Built:
    """Write `results`/report.html from `results`/runs; the same records and texts give the same bytes.

    prompts, samples: the most prompts of each suite, and the most texts of each prompt, in the page; 0: none at all.
    processes: the number of forked processes that help (`bench.console.children`).

    Raises:
        SetupError: there is no record of a test split, or the page cannot be written.
    """
    runs = results / "runs"
    records, skipped = read_records(runs, processes)
    found = tables(records)
    if not found:
        raise SetupError(
            f"{len(records)} records in {runs}, but none of the test split, only of tuning; "
            "run the cell to its end with `python -m bench`"
        )
    drawing = images.begin(results, found, Children(processes))
    begun = list(itertools.islice(drawing, processes))  # children draw these while the sections are made
    store = texts.Store(runs / "generations")
    shown = [section(table, runs, store, prompts, samples) for table in found]
    if prompts and samples:
        skipped = [*skipped, *store.skipped]
    drawn = images.figures([*begun, *drawing], found)
    html = render(shown, drawn, skipped, len(records))
    path = results / "report.html"
    try:
        write_whole(path, html.encode())
    except OSError as error:
        raise SetupError(f"cannot write the report to {results}: {command.refused(error)}") from error
    inside = sum(len(row) for one in shown for side in one["sides"] for own in side.written for row in own.texts)
    return Built(path, skipped, inside)


def section(table: Table, runs: Path, store: texts.Store, prompts: int, samples: int) -> dict[str, Any]:
    """Return the values from which the template draws the section of one table."""
    pages = method_page.pages(table)
    sides = texts.side_by_side([(one.row, one.label) for one in pages], runs, store, prompts, samples)
    shown = columns.columns(table)
    parts = dict.fromkeys(one.part for one in shown)
    there = {name for side in sides for name in side.labels}
    called = titles.called(map(str, table.frame["method"]))
    return {
        "number": table.number,
        "model": table.about.model.name,
        "heading": formatting.heading(table, called),
        "notes": [*formatting.told_first(table), *formatting.found_out(table, called)],
        "verdict": verdict(table),
        "columns": shown,
        "choices": {part: [i for i, one in enumerate(shown) if one.part == part] for part in parts},
        "rows": [{"page": one, "search": search(one)} for one in pages],
        "families": sorted({one.family for one in pages}),
        "sides": sides,
        "data": [side.data() for side in sides],
        "without_texts": [one.label for one in pages if one.label not in there],
    }


def search(page: method_page.Page) -> str:
    """Return the text in which the page's filter searches."""
    return " ".join([page.label, page.name, page.family, page.numbers["parameters"], flags(page.numbers)]).lower()


def verdict(table: Table) -> str:
    """Return a sentence that says which rows differ from unsteered; empty if no row was tested."""
    frame = table.frame
    if "verdict" not in frame or frame["verdict"].isna().all():
        return ""
    names = formatting.apart(method_page.titled(frame), frame)
    named = list(zip(names, frame["verdict"], strict=True))
    told = []
    for kind in ("better", "worse", "no difference found", NOT_INDEPENDENT, COLLAPSED):
        labels = [label for label, found in named if found == kind]
        if labels:
            told.append(f"{kind}: {', '.join(labels)}")
    corrected = ", after Holm's correction" if tests(table.frame, table.aims.headline) > 1 else ""
    title = headline_title(table.aims.headline, table.aims.toxicity)
    return f"Change in {title} from unsteered{corrected}: {'; '.join(told)}."


def breaking(text: str) -> Markup:
    """Escape the text, and allow a line break after underscores and dots, since names of metrics are long."""
    return Markup(re.sub(r"(?<=[_.])(?=[a-z])", "<wbr>", str(escape(visible(text)))))


def shown(value: Any) -> Any:
    """Replace invisible characters by visible escapes, but leave Markup as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render(sections: Sequence[dict[str, Any]], figures: images.Figures, skipped: Sequence[str], records: int) -> str:
    """Render the page. Jinja escapes whatever comes from data, also inside JSON, which the script shows only as text.

    The content security policy allows the script by its hash.
    """
    environment = Environment(
        loader=PackageLoader(PARTS, "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, finalize=shown,
    )  # fmt: skip
    environment.filters["breaking"] = breaking
    style, script = (files(PARTS).joinpath("templates", name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    with_texts = any(one["sides"] for one in sections)
    return environment.get_template("page.html").render(
        sections=sections, figures=figures, with_texts=with_texts, skipped=skipped, records=records, style=style,
        script=script, script_hash=digest, content=formatting.CONTENT.partition(" The sampled")[0],
        separate=formatting.SEPARATE,
    )  # fmt: skip
