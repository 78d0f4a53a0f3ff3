r"""Escaping of free text: for each output format, a function that makes any text inert in it.

Names of models, methods, scorers, tasks and groups, messages of errors, paths and prompts are somebody else's text. A
writer passes them through the function of its format and then adds its own markup.

terminal      for a console of rich: no markup, no emoji code, no control sequence.
markdown      one line, in a paragraph, a list or a cell of a table; code: set as code.
latex         one line, in a paragraph, a caption or a cell.
csv, read_csv a whole table and back: without a cell that a spreadsheet would compute, and with the original names.
visible       for figures, whose style switches mathtext off (bench/plots/style.py), and for HTML, where Jinja's
              autoescape does the rest (bench/report/page.py).
literal, file_name: inside a Python string, and as one part of a path.

All these functions write invisible characters as escapes, such as `\x1b` and `\u202e`. Invisible are those with the
property Default_Ignorable_Code_Point (17.0, DerivedCoreProperties.txt: joiners, marks that change the direction of
writing, tags, variation selectors, blank letters of Hangul), control characters, line and paragraph separators,
noncharacters, unpaired surrogates, and the blank sign of Braille.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

IGNORABLE = (
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""The whole property Default_Ignorable_Code_Point, which Python's unicodedata does not tell."""
NO_CHARACTER = "\ud800-\udfff\ufdd0-\ufdef" + "".join(
    chr(end) for plane in range(17) for end in (plane << 16 | 0xFFFE, plane << 16 | 0xFFFF)
)
HIDDEN = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029\u2800\ufff9-\ufffb{IGNORABLE}{NO_CHARACTER}]")


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: object, *, lines: bool = False) -> str:
    """Return the text with invisible characters written out; on one line or, with `lines`, with its line breaks."""
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown  # as nearly all texts
    shown = shown.replace("\r\n", "\n").replace("\t", " ")
    if not lines:
        return HIDDEN.sub(_written_out, shown.replace("\n", " "))
    return "\n".join(HIDDEN.sub(_written_out, line) for line in shown.split("\n"))


def terminal(text: object, style: str = "", *, lines: bool = False) -> Text:
    """Return the text for a console of rich, without markup. lines: whether its line breaks are kept."""
    return Text(visible(text, lines=lines), style)


MARKS = re.compile(r"[\\`*<>\[\]|~${}]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w])|:(?=//)|(?<=www)\.", re.IGNORECASE)
MAIL = re.compile(r"(?<=\S)@(?=\S)")  # GitHub links an address even if its characters are escaped
APART = "@<!-- -->"  # an empty comment, of which nothing is shown
OPENS = re.compile(r"[#=]|[-+](?=[\s-]|$)")  # begins a block at the beginning of a line
NUMBERED = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")


def markdown(text: object) -> str:
    """Return one line of GitHub's Markdown that shows just this text: no mark, link, tag, formula, list or new cell."""
    line = MAIL.sub(APART, MARKS.sub(r"\\\g<0>", visible(text).strip()))
    return "\\" + line if OPENS.match(line) else NUMBERED.sub(r"\1\\\2", line, count=1) if line[:1].isdigit() else line


def markdown_table(heads: Sequence[object], rows: Iterable[Sequence[object]], left: int | None = None) -> list[str]:
    """Return the lines of a table; if `left` is given, the columns after the first `left` ones are aligned right."""
    rule = ["---" if left is None or number < left else "---:" for number in range(len(heads))]
    texts = [[markdown(one) for one in row] for row in (heads, *rows)]
    return [f"| {' | '.join(row)} |" for row in (texts[0], rule, *texts[1:])]


def code(text: object) -> str:
    """Return the text as inline code in Markdown; not for a cell of a table."""
    line = visible(text).strip()
    ticks = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`" if line else ""


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": r"\textasciigrave{}"}
LATEX |= {"–": "--", "±": r"$\pm$", "<": "$<$", ">": "$>$", "|": r"\textbar{}", "†": r"$^{\dagger}$"}
LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"} | {sign: f"{{{sign}}}" for sign in "[]*"} | {"\u200b": "{}"}
r"""`[` and `*` are in braces, else they would be options of a `\\` or `\midrule` before; `--` stays two hyphens."""


def latex(text: object) -> str:
    """Return the text as one line of LaTeX."""
    return "".join(LATEX.get(sign, sign) for sign in re.sub("-(?=-)", "-\u200b", visible(text)))


def literal(text: object) -> str:
    """Return the text escaped, so that it can stand between double quotes in Python code."""
    return visible(str(text).replace("\\", "\\\\").replace('"', '\\"'))


def file_name(text: object, slash: str = "_") -> str:
    """Return the text as one part of a path, of letters, digits, `.`, `_`, `+` and `-`; slash: replaces each `/`."""
    name = re.sub(r"[^\w.+-]", "_", str(text).replace("/", slash), flags=re.ASCII)[:100]
    return re.sub(r"^\.", "_", name) or "_"


# -- tables --------------------------------------------------------------------------------------------------------

ACTIVE = re.compile(r"\s*['=+\-@\uff1d\uff0b\uff0d\uff20]")  # what a spreadsheet computes, and our own mark
SPLITS = re.compile(r"[;|](?=[\s\"]*[=+\-@\uff1d\uff0b\uff0d\uff20])")  # a spreadsheet that splits there would compute
NUMBERS = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?(; [-+]?[\d.]+(e[-+]?\d+)?)*|[-+]?(inf|nan)", re.IGNORECASE)
CODED = re.compile(r"\\(?:\\|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
NAMES = ("model", "method", "family", "strengths", "suite", "metric", "scorer", "set", "group", "experiment")
"""Columns that are text even if all their cells look like numbers."""


def cell(value: Any) -> Any:
    r"""Return a cell of a CSV file; an apostrophe precedes a text that a spreadsheet would compute.

    An apostrophe also precedes a text with invisible characters, and a text in which a part after a `;` or `|` would be
    computed, since some spreadsheets split there. In cells with an apostrophe, and in no others, a backslash is
    doubled, and that `;` or `|` and invisible characters, tabs included, are written as escapes such as `\x3b`. All
    other cells are not changed, not even numbers given as text.
    """
    if not isinstance(value, str) or NUMBERS.fullmatch(value):
        return value
    if not (ACTIVE.match(value) or SPLITS.search(value) or HIDDEN.search(value)):
        return value
    return "'" + HIDDEN.sub(_written_out, SPLITS.sub(_written_out, value.replace("\\", "\\\\")))


def uncell(value: Any) -> Any:
    """Undo `cell`: return the text that it was given."""
    if not isinstance(value, str) or not value.startswith("'"):
        return value
    return CODED.sub(lambda found: chr(int(found[1] or found[2] or found[3] or "5c", 16)), value[1:])


def csv(frame: "pd.DataFrame") -> str:
    """Return a table as CSV with inert cells and titles; numbers have six digits, which are equal on all machines."""
    text = io.StringIO()
    _each_text(frame, cell).to_csv(text, index=False, float_format="%.6g", lineterminator="\n")
    return text.getvalue()


def read_csv(path: Path) -> "pd.DataFrame":
    """Read a table that `csv` wrote, with the original names; only empty cells become missing values."""
    import pandas as pd

    frame = pd.read_csv(path, dtype=dict.fromkeys(NAMES, str), keep_default_na=False, na_values=[""])
    return _each_text(frame, uncell)


def _each_text(frame: "pd.DataFrame", of: Callable[[Any], Any]) -> "pd.DataFrame":
    import pandas as pd

    texts = [name for name, kind in frame.dtypes.items() if isinstance(kind, pd.StringDtype) or kind.kind == "O"]
    return frame.assign(**{str(name): frame[name].map(of) for name in texts}).rename(columns=of)
