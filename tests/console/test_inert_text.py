"""Names and texts are somebody else's: in whatever we write they are text, and do nothing."""

import ast
import csv as csv_reader
import importlib
import io
import re
import shlex
import shutil
import subprocess
import warnings
import xml.etree.ElementTree as ElementTree
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import cmarkgfm
import pandas as pd
import pytest
from cmarkgfm import cmark
from markdown_it import MarkdownIt
from omegaconf import OmegaConf
from rich.console import Console

from bench import reproduction
from bench.__main__ import tell
from bench.agreement import render
from bench.config import folders
from bench.console import command, escape
from bench.console.escape import visible
from bench.console.progress import Bar
from bench.leaderboard import build, csv_files, terminal
from bench.plots import __main__, draw, style
from bench.records.table import collect, read_records
from bench.report import page
from bench.run import runner
from methods.errors import SetupError
from tests import record_files
from tests.report.test_report import Page

PAYLOADS = [
    "a|b||c", "two\nlines", "row\r\n| x | y |", "\n\n# title", "`code` ``two``", "```\nfence",
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</script><!-- ]]> -->", "[bold red]x[/] [/]",
    "[link=http://x.y]x[/link]\\", ":bomb:", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "over\rwritten", "\x9b31m c1",
    "\u202egnp.exe", "nul\x00", "\u2028 \x85 \x0b", r"\input{/etc/passwd}", r"\write18{ls}", "$x^2$ $",
    "50% & more_of #it ~ {x}", "^^M^^5c", "[*] *a* _b_ __c__ ~~d~~", "=1+1", "+cmd|' /C calc'!A0", "-1+1", "@SUM(A1)",
    "\t=1", "\r=1", " =1", "\uff1d1", "'=1", "'quoted'", "# h", "- item", "+ item", "1. one", "2) two", "---", "===",
    "> quote", "[x](javascript:alert(1))", "![i](http://x/y.png)", "[x]: http://x", "<http://x.y> http://x.y www.x.y",
    "&lt;b&gt; &#60; &amp", "{{ 7 * 7 }} {% x %}", "\\", "x\\", r"\$x$", '"quoted", yes;no', "long " * 60, "x" * 300,
    "me@evil.com", "mailto:a@b.co", "xmpp:a@b.co/x", "a_b.c-d+e@f_g.co", "x@_y.co (m@n.co)", "_www.x.y",
    "*www.x.y~www.x.y",
    "xhttps://x.y,www.x.y", "HTTP://X.Y;ftp://x.y", "\\http://x.y \\me@evil.com", "x;=1+1", "x|=1", "x\t=1", "x; \"=1",
    "a;b|c;-d", "x;\u200b=1", "\\x1b", "\\x3b=1", "'x;=1",
    "名前 é 😀", "\ufeffmark", "NA", "nan", "True", "123", "-2", "1e5", "None", "",
]  # fmt: skip
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
COLOURS = re.compile(r"\x1b\[[\d;]*m|\x1b\]8;[^\x1b]*\x1b\\")  # what rich itself writes
HIDDEN = [*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5,
          *range(0x180B, 0x1810), *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0x2800,
          0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0, *range(0xFFF0, 0xFFFC), *range(0x1BCA0, 0x1BCA4),
          *range(0x1D173, 0x1D17B),
          *range(0xE0000, 0xE1000), 0xFFFE, 0xFFFF, 0xFDD0, 0xD800, 0xDFFF, 0x10FFFF]  # fmt: skip
GFM = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def blank(text: str) -> str:
    return " ".join(text.split())


# -- each format ---------------------------------------------------------------------------------------------------


def test_nothing_is_hidden():
    for text in PAYLOADS:
        assert not CONTROL.search(visible(text)) and "\n" not in visible(text)
    assert visible("a\nb\tc", lines=True) == "a\nb c" and visible("\x1b \u202e \ud800") == r"\x1b \u202e \ud800"


@pytest.mark.parametrize(
    "frame", ["{}", "- {}", "## {}", "**{}**", "line  \n{}", "| head | x |\n| --- | --- |\n| {} | x |"]
)
def test_markdown_shows_the_text_alone(frame):
    def kinds(tokens):
        found = [one for token in tokens for one in (token, *(token.children or [])) if one.content != "<!-- -->"]
        return [one.type for i, one in enumerate(found) if one.type != "text" or found[i - 1].type != "text"]

    for text in PAYLOADS:
        plain, found = (GFM.parse(frame.format(one)) for one in ("word", escape.markdown(text) or "word"))
        assert kinds(found) == kinds(plain)
        texts = [
            "".join(one.content for one in token.children).replace("<!-- -->", "")
            for token in found
            if token.type == "inline"
        ]
        assert any(blank(one).removeprefix("line") == (blank(visible(text)) or "word") for one in texts)


@pytest.mark.every(3)
@pytest.mark.parametrize("frame", ["{}", "x {} y", "- ({})", "**{}**", "_{}_", "| head |\n| --- |\n| {} |"])
def test_github_makes_no_link_of_the_text(frame):
    github = cmarkgfm.github_flavored_markdown_to_html
    assert github("me@evil.com www.x.y https://x.y").count("<a ") == 3
    for text in PAYLOADS:
        html = github(frame.format(escape.markdown(text) or "word"), cmark.Options.CMARK_OPT_UNSAFE)
        assert "<a " not in html
        shown = unescape(re.sub("<[^>]*>", "", html.replace("<!-- -->", "")))
        assert blank(visible(text)) in blank(shown)


def test_what_cannot_be_seen_is_written_out():
    for code in HIDDEN:
        shown, cell = escape.visible(f"a{chr(code)}b"), escape.cell(f"a{chr(code)}b")
        assert shown == "a b" if chr(code) in "\t\n" else chr(code) not in shown, hex(code)
        assert chr(code) not in cell and escape.uncell(cell) == f"a{chr(code)}b", hex(code)


@pytest.mark.parametrize("text", ["\u00a0", "\u0301", "é", "名", "😀", "\u0640", "\u3000", "\uac00", "\u1112\u1161"])
def test_what_can_be_seen_stays(text):
    assert escape.visible(f"a{text}b") == f"a{text}b" == escape.cell(f"a{text}b")


@pytest.mark.parametrize("text, cell", [
    ("x;=1+1", r"'x\x3b=1+1"), ("x|=1", r"'x\x7c=1"), ("x\t=1", r"'x\x09=1"), ('x; "=1', r"""'x\x3b "=1"""),
    ("a;b|c", "a;b|c"), ("1; -2", "1; -2"), ("\x1b", r"'\x1b"), (r"\x1b", r"\x1b"), ("x;\u200b=1", r"'x;\u200b=1"),
])  # fmt: skip
def test_a_spreadsheet_that_splits_elsewhere_computes_nothing(text, cell):
    assert escape.cell(text) == cell and escape.uncell(cell) == text
    for sign in ";|\t":
        assert not any(re.match(r"[\s\"]*[=+@]", part) for part in escape.cell(text).split(sign))


def test_a_markdown_table_is_escaped_and_aligned():
    rows = [["a|b", 1], ["*c*", 2]]
    assert escape.markdown_table(["x", "n"], rows) == ["| x | n |", "| --- | --- |", r"| a\|b | 1 |", r"| \*c\* | 2 |"]
    assert escape.markdown_table(["x", "n"], [], left=1) == ["| x | n |", "| --- | ---: |"]


def test_code_in_markdown_is_one_piece_of_code():
    for text in PAYLOADS:
        tokens = GFM.parse(f"before {escape.code(text)} behind")
        (inline,) = (token for token in tokens if token.type == "inline")
        shown = [one.content for one in inline.children if one.type == "code_inline"]
        assert len(tokens) == 3 and [blank(one) for one in shown] == ([blank(visible(text))] if text else [])


def test_latex_has_no_command_of_the_text():
    known, back = set(escape.LATEX.values()) | {"--"}, {value: key for key, value in escape.LATEX.items()} | {"{}": ""}
    for text in PAYLOADS:
        written = escape.latex(text)
        parts = re.split("(" + "|".join(map(re.escape, sorted(known, key=len, reverse=True))) + ")", written)
        rest = "".join(part for part in parts if part not in known)
        assert not re.search(r"[\\{}$&#^_~%\[\]*\n\r`|<>]", rest)
        assert "".join(back.get(part, part) for part in parts) == visible(text)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_is_set(tmp_path):
    rows = "\n".join(rf"{escape.latex(one)} & x \\" for one in PAYLOADS if one.isascii())
    page = rf"\documentclass{{article}}\begin{{document}}\begin{{tabular}}{{ll}}{rows}\end{{tabular}}\end{{document}}"
    (tmp_path / "page.tex").write_text(page)
    subprocess.run(["pdflatex", "-halt-on-error", "-no-shell-escape", "page.tex"], cwd=tmp_path, check=True)


def test_a_terminal_prints_the_text():
    for text in PAYLOADS:
        out = io.StringIO()
        Console(file=out, force_terminal=True, soft_wrap=True).print(escape.terminal(text, "bold red"))
        assert COLOURS.sub("", out.getvalue()).removesuffix("\n") == visible(text)


def test_a_string_of_python_holds_the_text():
    for text in PAYLOADS:
        shown = text.replace("\r\n", " ").replace("\n", " ").replace("\t", " ")
        assert ast.literal_eval(f'"{escape.literal(text)}"') == shown


def test_a_file_name_is_one_part_of_a_path(tmp_path):
    for text in [*PAYLOADS, "..", ".", "../../etc/passwd", "/root", "org/name"]:
        name = escape.file_name(text)
        (tmp_path / name).write_text("x")
        assert (tmp_path / name).parent == tmp_path and [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
    assert escape.file_name("org/name-1.2B", "--") == "org--name-1.2B"


def test_a_table_of_texts_comes_back_and_computes_nothing(tmp_path):
    frame = pd.DataFrame({"=HYPERLINK(1)": PAYLOADS, "method": PAYLOADS, "n": [-0.5 * i for i in range(len(PAYLOADS))]})
    text = escape.csv(frame)
    (tmp_path / "table.csv").write_bytes(text.encode())
    rows = list(csv_reader.reader(io.StringIO(text, newline="")))
    assert {len(row) for row in rows} == {3} and len(rows) == len(PAYLOADS) + 1
    for row in rows:
        for cell in row:
            assert not re.match(r"\s*[=+\-@\uff1d]", cell) or re.fullmatch(r"[-+]?[\d.]+", cell), cell
            assert not CONTROL.search(cell)
    found = escape.read_csv(tmp_path / "table.csv")
    assert list(found.columns) == list(frame.columns) and found["n"].tolist() == frame["n"].tolist()
    assert found["method"].fillna("").tolist() == PAYLOADS
    assert [row[2] for row in rows[1:4]] == ["-0", "-0.5", "-1"]


@pytest.mark.parametrize("text", [r"$\alpha$", "$x^2$", "$", "a $b$ c"])
def test_a_dollar_in_a_figure_is_a_dollar(text):
    with style.mpl.rc_context(style.STYLE):
        assert style.measure(text) > style.measure(text.replace("$", "")) + 1


# -- what is written from records ----------------------------------------------------------------------------------

NAMES = [one for one in PAYLOADS if one.strip() and len(one) < 60 and one not in ("'quoted'", "\t=1", "\r=1")]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """Three models, of which each method, setting, source, scorer, task, group and suite is called as payloads are."""
    results = tmp_path_factory.mktemp("hostile")
    for start in range(3):
        names = NAMES[start::3]
        model = {"name": names[0], "sha256": f"{start}" * 12, names[1]: names[2]}
        scorer, task, group, suite = ("".join(c for c in one if c not in "./") for one in names[3:7])
        source = {"name": names[7], "source": names[8], "fingerprint": "f" * 12}
        for i, method in enumerate(["unsteered", *names[:10]]):
            about = {"model": model, "sources": [source], "parameters": {names[9]: names[(i + 10) % len(names)]}}
            about["scorers"] = {"report": [scorer], "tune": scorer, "pairs": scorer}
            about["provenance"] = {"packages": {names[10]: names[11]}}
            about["data"] = {"name": names[12], "pairs": 9, "scorer": scorer} if i else None
            tuning = record_files.tuning([(4.0, 1.1, 0.4), (-2.0, 1.0, 0.1)], 4.0, feasible=bool(i % 2), scorer=scorer)
            about |= {"tuning": tuning if i else None, "family": names[13]}
            values = [0.9 - 0.05 * i, 0.4, 0.6 - 0.05 * i, 0.2, 0.7]
            toxic = {f"{scorer}.expected_maximum_toxicity_k5": values}
            record_files.write(results, "rtp", method, toxic, **about)
            record_files.write(results, "rtp", method, toxic, split="dev", **about)
            record_files.write(results, "fluency", method, {"perplexity": [2.0 + 0.1 * i, 2.2, 2.1]}, **about)
            right = {f"{task}.accuracy": [1, 1, 1, 0, i % 2]}
            record_files.write(results, "capability", method, right, chance={task: 0.2}, **about)
            record_files.write(results, "toxigen", method, {f"{scorer}.toxic_share.{group}": values}, **about)
            record_files.write(results, suite, method, {f"{group}.{task}": values}, **about)
    return results


@pytest.fixture(scope="module")
def built(hostile) -> build.Built:
    return build.rebuild(hostile)


@pytest.mark.slow
def test_the_tables_come_back_with_the_names_of_the_records(hostile, built):
    found = read_records(hostile / "runs")[0]
    for path in (built.csv, built.tidy):
        for row in csv_reader.reader(io.StringIO(path.read_bytes().decode(), newline="")):
            assert not any(re.match(r"\s*[=+\-@]", cell) and not escape.NUMBERS.fullmatch(cell) for cell in row)
            assert not any(CONTROL.search(cell) for cell in row)
        table = escape.read_csv(path)
        for column, key in (("model", "model"), ("method", "method")):
            assert set(table[column]) == {getattr(one.record, key).name for one in found}
    assert {one.record.suite for one in found} == set(escape.read_csv(built.tidy)["suite"].dropna())
    assert list(escape.read_csv(built.csv).columns) == list(csv_files.short(built.tables).rows.columns)
    assert set(collect(hostile / "runs")["method"]) == set(escape.read_csv(built.csv)["method"])


def test_the_page_in_markdown_has_our_marks_alone(built):
    tokens = GFM.parse(built.markdown.read_text())
    kinds = {one.type for token in tokens for one in (token, *(token.children or []))}
    ours = {"heading", "paragraph", "bullet_list", "list_item", "table", "thead", "tbody", "tr", "th", "td", "strong"}
    assert {kind.removesuffix("_open").removesuffix("_close") for kind in kinds} == ours | {
        "inline",
        "text",
        "hardbreak",
    }
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == ["Leaderboard", *(f"Table {table.number}" for table in built.tables)]
    rows = [
        line.count("<td>") for line in GFM.renderer.render(tokens, GFM.options, {}).split("</tr>") if "<td>" in line
    ]
    assert len(rows) >= sum(len(table.frame) for table in built.tables) and not CONTROL.search(
        built.markdown.read_text()
    )


def test_the_latex_tables_have_our_commands_alone(built):
    text = "".join(line for line in built.tex.read_text().splitlines(True) if not line.startswith("% "))
    commands = set(re.findall(r"\\[A-Za-z]+", text))
    ours = {"begin", "end", "centering", "fontsize", "selectfont", "setlength", "tabcolsep", "caption", "label",
            "toprule", "midrule", "bottomrule", "mathbf", "downarrow", "uparrow", "dagger", "ddagger", "S", "P", "pm",
            "cite", "allowbreak", "par", "parbox", "smallskip", "linewidth", "vskip", "providecommand", "steername",
            "steerinterval", "raggedright", "let", "tabularnewline", "hangindent", "hangafter", "setbox", "hbox",
            "ifdim", "wd", "resizebox", "box", "else", "leavevmode", "fi", "times"}  # fmt: skip
    texts = {"textbackslash", "textasciitilde", "textasciicircum", "textasciigrave", "textbar"}
    assert {one[1:] for one in commands} <= ours | texts
    for table in text.split("\\toprule\n")[1:]:
        rows = [line for line in table.partition(r"\bottomrule")[0].splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1 and len(rows) > 3
        assert not any(re.match(r"\s*[\[*]", row) for row in rows)


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_the_leaderboard(built, width):
    out = io.StringIO()
    terminal.show(terminal.shown(built), Console(file=out, width=width, force_terminal=True))
    assert not CONTROL.search(COLOURS.sub("", out.getvalue()).replace("\n", ""))
    assert r"\x1b[31m" in "".join(COLOURS.sub("", out.getvalue()).split()) and "[bold" in out.getvalue()


@pytest.mark.slow
def test_the_figures_are_drawn_and_can_be_read(hostile, built):
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", message=r"Glyph (?!\d{5})"
        )  # of a sign that DejaVu lacks, not of a control code
        paths = draw.rebuild(hostile, built.tables)
    assert {path.name.partition("-")[0].partition(".")[0] for path in paths} >= {
        "tradeoff",
        "capability",
        "groups",
        "cost",
    }
    for path in paths:
        if path.suffix == ".svg":
            ElementTree.parse(path)
            assert not CONTROL.search(path.read_text().replace("\n", ""))


def test_files_of_one_model_stay_in_the_folder_of_figures(tmp_path):
    for method in ("unsteered", "caa"):
        record_files.cell(tmp_path, method, 0.5, 0.1, 0.9, n=8, model={"name": "..", "sha256": "0" * 12})
    assert __main__.main(["tradeoff", "--results", str(tmp_path), "--model", ".."]) == 0
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["_."]


@pytest.mark.slow
def test_the_report_has_our_elements_alone(hostile):
    html = page.rebuild(hostile).path.read_text()
    found = Page(html)
    assert {tag for tag, _ in found.elements}.isdisjoint({"object", "iframe", "embed"})
    assert not [a for _, a in found.elements if any(name.startswith("on") for name in a)]
    assert html.count("<script") == sum(tag == "script" for tag, _ in found.elements) == html.count("</script>")
    assert {a["src"].partition(":")[0] for tag, a in found.elements if tag == "img"} == {"data"}
    assert not CONTROL.search(html.replace("\n", ""))
    for text in NAMES[:10]:
        assert blank(visible(text)) in blank(found.shown), text


# -- messages ------------------------------------------------------------------------------------------------------


def raised(message: str) -> None:
    raise SetupError(message)


def test_messages_are_printed_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for text in PAYLOADS:
        assert command.run(raised, text) == 2
        tell([runner.Failure(text, f"ValueError: {text}", Path("/x"), setup=False)])
        error = COLOURS.sub("", capsys.readouterr().err)
        assert not CONTROL.search(error.replace("\n", ""))
        assert visible(text, lines=True).replace("\n", "\nerror: ") in error and "failed: " in error
        assert all(line.startswith(("error:", "failed:", "  ")) for line in error.splitlines())


@pytest.mark.parametrize(
    "name", ["agreement.__main__", "leaderboard.__main__", "plots.__main__", "report.__main__", "reproduction"]
)
@pytest.mark.parametrize("text", ["--\x1b[31mX", "--\u202eX", "--x\ny", "--\x9b2J", "--\udcff"])
def test_unknown_options_are_told_as_they_are(name, text, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"bench.{name}").main([text])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and not CONTROL.search(error.replace("\n", ""))
    assert f"error: unrecognized arguments: {visible(text)}; " in error


def test_every_parser_is_the_one_that_writes_inert_text():
    files = Path(command.__file__).parents[1].rglob("*.py")
    assert {path.name for path in files if "argparse.ArgumentParser" in path.read_text()} == {"command.py"}


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_done_is_told_as_it_is_called(terminal, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    monkeypatch.setattr(Bar, "LINE_EVERY_SECONDS", -1.0)
    with Bar({"a": 1.0}) as bar:
        bar.console.width = 400
        for text in ("[bold]x[/] [/]", "\x1b]0;title\x07", ":bomb:", "over\rwritten"):
            with bar.stage("a", text):
                bar.progress.refresh()
    error = capsys.readouterr().err
    assert "[bold]x[/] [/]" in error and r"\x1b]0;title\x07" in error and ":bomb:" in error
    assert r"over\x0dwritten" in error and "\x1b]0" not in error


def test_other_tables_are_inert_as_well(tmp_path):
    rows = []
    for text in NAMES:
        figure = {"method": text, "metric": text, "published": 1.0, "published_unsteered": None, "ours": 2.0,
                  "ours_n": 3, "ours_unsteered": 1.0, "difference": 1.0, "status": "run", "source": text}  # fmt: skip
        rows.append({"experiment": text, "model": text} | figure)
    one = reproduction.Reproduction("`x` <b>", "python -m bench `x`", rows, NAMES, {"access": NAMES[0]})
    table, page = reproduction.rebuild([one], tmp_path)
    assert escape.read_csv(table)["method"].tolist() == NAMES
    tokens = GFM.parse(page.read_text())
    html = GFM.renderer.render(tokens, GFM.options, {})
    overview = 2 + len(reproduction.NEEDS)
    assert html.count("<td") == overview + len(NAMES) * len(reproduction.SHOWN) and html.count("<li>") == len(NAMES)
    assert not {token.type for token in tokens} & {"html_block", "fence", "code_block", "blockquote_open"}
    out = io.StringIO()
    reproduction.show([one], Console(file=out, width=200, force_terminal=True))
    assert not CONTROL.search(COLOURS.sub("", out.getvalue()).replace("\n", ""))

    numbers = {f"{name}{end}": 0.5 for name in render.TITLES for end in ("", "_low", "_high")}
    frame = pd.DataFrame([
        {"scorer": text, "set": other, "group": group, "n": 9, "positives": 4, "learnt_from": False, **numbers}
        for text, other in zip(NAMES, reversed(NAMES), strict=True) for group in ("", text)
    ])  # fmt: skip
    html = GFM.render(render.markdown(frame))
    assert html.count("<td") == 8 * 2 * len(NAMES) and html.count("<h2>") == len(NAMES)
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=True)
    for one in (render.table(frame), render.groups_table(frame)):
        console.print(one)
    assert (
        not CONTROL.search(COLOURS.sub("", out.getvalue()).replace("\n", "")) and "[bold red]x[/] [/]" in out.getvalue()
    )
    ElementTree.fromstring(style.rendered(render.figure(frame[frame["scorer"].isin(NAMES[::6])]), "svg").decode())


# -- other writers -------------------------------------------------------------------------------------------------


def test_the_card_of_an_export_holds_the_names():
    from bench.export import __main__ as export
    from bench.export import gguf, lm_eval, peft

    for text in filter(str.strip, PAYLOADS):
        steered = SimpleNamespace(base=text, revision="0" * 40)
        facts = {"method": {"name": text}, "base": {"name": text, "bos": text, "chat": False}, "strength": 1.0,
                 "strength_unit": text, "format": "peft", "largest_logit_difference": 0.0,
                 "licence": f"From {text}."}  # fmt: skip
        tokens = GFM.parse(export._readme(facts, export._use(peft, steered, text, escape.literal)))
        blocks = [token.type for token in tokens if token.level == 0 and not token.type.endswith("_close")]
        assert blocks == ["heading_open", "paragraph_open", "fence", "bullet_list_open"]
        (program,) = (token.content for token in tokens if token.type == "fence")
        called = {node.func.attr for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)}
        assert called == {"from_pretrained"}
        loaded = [node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)]
        assert text != visible(text) or text in loaded
        for module in (lm_eval, gguf):
            line = export._use(module, steered, text, export._quoted)
            assert "\n" not in line and not CONTROL.search(line)
            words = shlex.split(line, comments=True)
            assert words[0] in ("lm-eval", "llama-cli") and any(visible(text) in word for word in words)


def test_an_export_stays_in_its_folder(tmp_path):
    from bench.export import __main__ as export

    model = {"name": "../../.."}
    cell = SimpleNamespace(
        cfg=OmegaConf.create({"model": model, "strength": 1.0, "runtime": {"results": str(tmp_path)}}),
        method=SimpleNamespace(name="/etc/x\n[y]"), names=SimpleNamespace(fit_id="0" * 12),
    )  # fmt: skip
    assert export._default(cell, "gguf") == tmp_path / "exports" / f"_.--..--..---etc--x__y_-x1-{'0' * 12}.gguf"


def test_a_self_test_tells_what_the_method_said(capsys):
    from bench.selftest import __main__ as selftest

    cfg = OmegaConf.create({"model": {"name": "[bold]m[/]\x1b[2J"}, "method": {"_target_": "a.[red]b[/]"}})
    results = [selftest.Result("undo", "FAIL", f"ValueError: {text}") for text in PAYLOADS if len(text) < 40]
    assert selftest._told(results, cfg, 0.0) == 1
    shown = capsys.readouterr().out
    assert not CONTROL.search(shown.replace("\n", "")) and "[bold red]x[/] [/]" in shown and ":bomb:" in shown
    assert r"a.[red]b[/] on [bold]m[/]\x1b[2J: 0 passed" in shown


def test_help_shows_what_plugins_say(tmp_path, capsys):
    from bench.config import help, plugins

    folder = tmp_path / "conf"
    (folder / "method").mkdir(parents=True)
    (folder / "method/[bold]x[|].yaml").write_text(
        "# python -m bench\n# a [red]method[/] \u202e[2J\nkey: '[/]' # [bad :bomb: \u2028\n"
    )
    plugin = plugins.Plugin("[/] owner", folder)
    help.show(folders.folder(), [plugin], "all")
    shown = capsys.readouterr().out
    assert (
        "method=[bold]x[|]   brought by [/] owner" in shown and r"a [red]method[/]" in shown and r"\u202e[2J" in shown
    )
    assert "[bad :bomb:" in shown and not CONTROL.search(shown.replace("\n", ""))


def test_corrected_shares_are_told_by_their_names(tmp_path, capsys):
    from bench.agreement import rogan_gladen

    scorer, names = "[red]s[/]", [one for one in NAMES if "\n" not in one]
    rows = [{"table": 1, "model": text, "method": text, "strengths": "1", "suite": "rtp",
             "metric": f"{scorer}.toxic_fraction", "value": 0.2, "standard_error": 0.01} for text in names]  # fmt: skip
    (tmp_path / "leaderboard_tidy.csv").write_text(escape.csv(pd.DataFrame(rows)))
    rates = {"scorer": scorer, "set": rogan_gladen.BY, "group": "", "n": 100, "positives": 50,
             "false_negative_rate": 0.1, "false_positive_rate": 0.1}  # fmt: skip
    (tmp_path / "scorer_agreement.csv").write_text(escape.csv(pd.DataFrame([rates])))
    assert [row[2] for row in rogan_gladen.rows(tmp_path)] == names
    out = io.StringIO()
    rogan_gladen.show(tmp_path, Console(file=out, width=400, force_terminal=True))
    shown = COLOURS.sub("", out.getvalue())
    assert not CONTROL.search(shown.replace("\n", "")) and "[bold red]x[/] [/]" in shown and "Rogan" in shown
    (tmp_path / "scorer_agreement.csv").write_text(escape.csv(pd.DataFrame([rates | {"scorer": "other"}])))
    rogan_gladen.show(tmp_path, Console(file=(none := io.StringIO()), width=400))
    assert "not measured on" in none.getvalue() and "Rogan" not in none.getvalue()


def test_half_a_surrogate_and_a_folder_with_a_name_of_its_own(tmp_path, capsys):
    for method in ("unsteered", "half \ud800 of one"):
        record_files.write(
            tmp_path, "rtp", method, {"s.expected_maximum_toxicity_k5": [0.4, 0.5]}, model={"name": "m\udcff"}
        )
    (tmp_path / "runs/records/\x1b[2J[red]x").mkdir()
    found = build.rebuild(tmp_path)
    assert escape.read_csv(found.csv)["method"].tolist() == ["unsteered", r"half \ud800 of one"]
    out = io.StringIO()
    terminal.show(terminal.shown(found), Console(file=out, width=200))
    assert r"record \x1b[2J[red]x skipped" in out.getvalue() and "\x1b" not in out.getvalue()
    assert r"record \x1b[2J[red]x skipped" in page.rebuild(tmp_path).path.read_text()
    assert __main__.main(["tradeoff", "--results", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert r"record \x1b[2J[red]x skipped: record.json is missing" in told and "\x1b" not in told
    with pytest.warns(UserWarning, match=r"record \\x1b\[2J\[red\]x"):
        assert set(collect(tmp_path / "runs")["model"]) == {r"m\udcff"}
