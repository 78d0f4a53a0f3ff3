"""LaTeX that a paper can use: titles with citations, parts that fit a page, and nobody best who may not be."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard import bibliography, latex, latex_cells, latex_layout, latex_names, latex_text
from bench.leaderboard.build import rebuild
from bench.leaderboard.frame import Table, tables
from bench.leaderboard.latex_layout import BOTH_COLUMNS, ONE_COLUMN, PAGE, Block, Cell
from bench.records import titles
from bench.records.fields import MethodFacts
from bench.records.table import read_records
from methods.papers import PAPERS
from tests.record_files import edit, tuning, write

METRIC = "lexicon.expected_maximum_toxicity_k5"
LEVEL = np.linspace(0.3, 0.9, 30)
ODD = ("metöd_%_&_#_$_^_~_{}_näme_30ab", "back\\slash{and}braces_ünd_äöß", "λ-steering→中文_with_30_letters", "x" * 30)
KNOWN = tuning([(4.0, 1.1, 0.5)], 4.0)


def only(results) -> Table:
    (table,) = tables(read_records(results / "runs")[0])
    return table


def toxic(results, method, times, facts=None, **options) -> None:
    noise = np.random.default_rng([*method.encode()]).normal(0, 0.02, 30)
    path = write(results, "rtp", method, {METRIC: np.clip(LEVEL * times + noise, 0, 1)}, **options)
    if facts:
        edit(path, method=facts)


def facts(name, family="weights", **more) -> dict:
    return {"name": name, "family": family, "version": 1, "parameters": {}, "strength": 4.0, **more}


def uncommented(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("%"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """35 methods, the known ones and odd names, with all columns that LaTeX has: more than fit side by side."""
    results = tmp_path_factory.mktemp("latex")
    known = ["caa", "detox", "probe_rows", "act_add", "mean_centring", "security_vector", "finetune", "prompt"]
    names = [*known, *ODD, *(f"{ODD[i % 3][:-2]}{i:02d}" for i in range(35 - len(known) - len(ODD)))]
    for i, name in enumerate(("unsteered", *names)):
        options = {} if name == "unsteered" or i % 4 == 3 else {"tuning": KNOWN}
        toxic(results, name, 1 if name == "unsteered" else 0.2 + 0.02 * i, **options)
        generator = np.random.default_rng(i)
        right = (generator.random(30) < 0.6).astype(float)
        answers = {"piqa.accuracy": right, "piqa.gold_choice_logprob": right - 1}
        write(results, "capability", name, answers, chance={"piqa": 0.5}, **options)
        losses = 2.8 + 0.02 * i + generator.normal(0, 0.1, 30)
        write(results, "fluency", name, {"perplexity": losses}, weights={"perplexity": [70] * 30}, **options)
    return rebuild(results)


# -- structure -----------------------------------------------------------------------------------------------------


def test_each_row_has_as_many_cells_as_columns(many):
    text = many.tex.read_text()
    found = text.split(r"\begin{tabular}{@{}p")[1:]
    assert (
        len(found) == len(re.findall(r"\\begin\{table\*?\}", text)) == len(re.findall(r"\\end\{table\*?\}", text)) > 1
    )
    for one in found:
        kinds = re.sub(r"p?\{[\d.]+pt\}", "p", one.partition("@{}}")[0])
        body = one.partition("\\toprule\n")[2].partition("\\bottomrule")[0]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(kinds) - 1} and len(rows) > 5


def test_no_row_is_lost_on_the_pages(many):
    (table,) = many.tables
    blocks = [latex_cells.block(one, table, set(), latex_cells.marks(table.lines)) for one in latex.shown(table)]
    text = many.tex.read_text()
    assert len(table.frame) == 36
    for cell in blocks[0].cells:
        assert cell.latex in text
    (parts,) = set(re.findall(r"\(part \d of (\d)\)", text))
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(labels) == len(set(labels)) == int(parts) > 1


def test_every_part_fits_its_columns_and_a_page(many):
    (table,) = many.tables
    marks = latex_cells.marks(table.lines)
    blocks = [latex_cells.block(one, table, set(range(36)), marks) for one in latex.shown(table)]
    for part in latex_layout.parts(blocks[:2], blocks[2:]):
        assert part.width <= BOTH_COLUMNS
        assert sum(max(one.cells[i].height for one in part.columns) for i in part.rows) <= PAGE


def test_a_small_table_takes_one_column(tmp_path):
    toxic(tmp_path, "caa", 0.5)
    toxic(tmp_path, "probe_rows", 0.6)
    text = latex.document([only(tmp_path)])
    assert r"\begin{table}" in text and "table*" not in text
    assert "Brackets" not in text and "]" + ": 95" not in text, "it has no intervals"


@pytest.mark.parametrize("columns, rows", [(1, 3), (12, 3), (4, 90), (12, 90)])
def test_parts_hold_every_row_and_column_once(columns, rows):
    names = [Block(Cell("method", 30), [Cell(f"m{i}", 90, 17.6) for i in range(rows)], "")]
    numbers = [Block(Cell(f"c{k}", 40), [Cell("0", 50)] * rows) for k in range(columns)]
    found = latex_layout.parts(names, numbers)
    seen = [(one.head.latex, i) for part in found for one in part.columns[1:] for i in part.rows]
    assert sorted(seen) == sorted((f"c{k}", i) for k in range(columns) for i in range(rows))
    assert all(part.columns[0] is names[0] and part.width <= BOTH_COLUMNS for part in found)
    assert len({len(part.columns) for part in found}) <= 2, "about equally wide"


def test_widths_are_not_underestimated():
    """Against Computer Modern at 8 points, as TeX measures it."""
    measured = {"Model Surgery": 54.55, "0.26": 15.11, "strength": 30.75, "metod_with_MW": 62.53}
    for text, points in measured.items():
        assert points <= latex_text.width(text) + 0.05 < points * 1.25, text
    assert ONE_COLUMN < BOTH_COLUMNS and latex_text.width("0.26", bold=True) > latex_text.width("0.26")


# -- names ---------------------------------------------------------------------------------------------------------


def test_methods_go_by_their_titles_and_are_cited(many):
    text, entries = uncommented(many.tex.read_text()), many.bib.read_text()
    for title, cite in (("CAA", "2312.06681"), ("DeTox (ProFS)", "2405.13967"), ("Model Surgery", "2407.08770")):
        assert re.search(rf"\\steername\{{{re.escape(title)}(\$\^\{{\\\w+\}}\$)?~\\cite\{{arxiv{cite}\}}\}}", text)
    assert not re.search(r"probe|security\\?_vector", text)
    keys = set(re.findall(r"\\cite\{(.*?)\}", text))
    assert keys == set(re.findall(r"@misc\{(.*?),", entries)) and len(keys) == 6
    assert entries.count("{") == entries.count("}")


def test_every_cited_paper_is_known():
    classes = (one for text in titles._texts() for one in titles._classes(text).values())
    cited = {one["cite"] for one in classes if one.get("cite")}
    assert cited == set(PAPERS)
    for paper in PAPERS.values():
        assert all(re.fullmatch(r"[^,]+, [^,]+", name) for name in paper.authors) and paper.title and paper.year > 2000


def test_titles_need_no_import(tmp_path, monkeypatch):
    """Of a plug-in, whose module may not even be importable here."""
    (tmp_path / "brought").mkdir()
    (tmp_path / "brought" / "__init__.py").write_text("raise ImportError('never imported')\n")
    (tmp_path / "brought" / "mine.py").write_text(
        "import nothing_of_this_name\n\n\nclass Mine:\n    title = 'My method'\n    cite: str = '2501.00001'\n"
        "\n\nclass Bare:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert titles.by_name("mine", "brought.mine.Mine") == ("My method", "2501.00001", False)
    for path in ("brought.mine.Bare", "brought.mine.Gone", "brought.Gone", "gone.mine.Mine"):
        assert titles.by_name("caa", path) == ("caa", "", False), "not ours, though it has the name"
    entry = bibliography.entry("2501.00001")
    assert "key = {arXiv:2501.00001}" in entry and "author" not in entry and "title" not in entry


def test_a_stack_says_what_it_is_made_of():
    parts = {
        "a": {"name": "caa", "version": 2, "parameters": {}},
        "b": {"name": "detox", "version": 1, "parameters": {}},
    }
    stack = MethodFacts.from_json(facts("stack", "stack") | {"parameters": {"at": {"a": 1}, "parts": parts}})
    name = latex_names.cell(latex_names.title(stack), "").latex
    assert name == r"Stack: CAA~\cite{arxiv2312.06681} + DeTox (ProFS)~\cite{arxiv2405.13967}"
    assert bibliography.cited(stack) == ["2312.06681", "2405.13967"]


def test_rows_of_one_method_have_names_of_their_own(tmp_path):
    toxic(tmp_path, "unsteered", 1.0)
    about = {"how": "flip", "of_strength": 4.0}
    for seed in (0, 1):
        control = facts("caa control", "control", control=about) | {"parameters": {"seed": seed}}
        toxic(tmp_path, "caa control", 1.0, control, fit_seed=seed)
    for layer in (0.3, 0.6):
        toxic(tmp_path, "caa", 0.5, parameters={"layer": layer, "read": "all"})
    toxic(tmp_path, "detox", 0.5, strength=1.0)
    toxic(tmp_path, "detox", 0.6, strength=2.0)
    for pairs in (20, 80):
        toxic(tmp_path, "probe_rows", 0.5, fit_id=f"{pairs:012d}", data={"name": "on_policy", "pairs": pairs})
    names = ["".join(one.text for one in name) for name in latex_names.names(only(tmp_path))]
    assert sorted(names) == [
        "CAA (layer=0.3)", "CAA (layer=0.6)", "CAA control (2\xa0fits)", "DeTox (ProFS)", "DeTox (ProFS)",
        "Model Surgery (20 pairs)", "Model Surgery (80 pairs)", "Unsteered",
    ]  # fmt: skip


def test_rows_that_nothing_tells_apart_are_numbered():
    rows = [pd.Series(dict.fromkeys(latex_names.TELLING, 1))] * 2
    assert latex_names.apart(rows) == [["no.\xa01"], ["no.\xa02"]]


# -- cells ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value, text", [
    (0.256, "0.26"), (-0.004, "0.00"), (528.95, "528.95"), (1234.5, "1234"), (2.5e7, r"2.5\cdot10^{7}"),
    (float("inf"), r"\infty"),
])  # fmt: skip
def test_a_number_as_it_is_printed(value, text):
    assert latex_cells.digits(value) == text


@pytest.mark.parametrize("text, said", [
    ("4", "4"), ("3.21712; 3.3; 3.40319", "3.22--3.40"), ("0.2", "0.2"), ("1; 12", "1--12"),
])  # fmt: skip
def test_a_strength_as_it_is_printed(text, said):
    assert latex_cells.strength(pd.Series({"family": "weights", "strengths": text})).latex == said


@pytest.mark.parametrize("text, said", [
    ("näme č", "näme č"), ("λ ≤ Δ", r"$\lambda$ $\le$ $\Delta$"), ("中", r"\textbackslash{}u4e2d"),
    ("ą", r"\textbackslash{}u0105"), ("a_b", r"a\_b"),
])  # fmt: skip
def test_signs_that_pdflatex_does_not_know_are_written_out(text, said):
    assert latex_text.written(text) == said


def test_a_long_word_may_be_broken_and_loses_nothing():
    assert "".join(latex_text.pieces("x" * 50 + "_y-z w")) == "x" * 50 + "_y-z w"
    assert max(map(len, latex_text.pieces("x" * 50))) <= latex_text.PIECE


# -- the best ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["attack", "attack of a plug-in", "control", "random", "violated", "collapsed"])
def test_nobody_is_best_who_may_not_be(tmp_path, who):
    """The first row would be the best by far."""
    bounded = tuning([(4.0, 1.1, 0.5)], 4.0)
    first = {
        "attack": ("finetune", facts("finetune")),
        "attack of a plug-in": ("hostile", facts("hostile", "attack")),
        "control": ("caa control", facts("caa control", "control", control={"how": "x", "of_strength": 4.0})),
        "random": ("random_direction", None),
        "violated": ("probe_rows", None),
        "collapsed": ("probe_rows", None),
    }[who]
    loss = {"violated": 0.5, "collapsed": 6.0}.get(who, 0.0)
    for name, times, about, extra in (
        ("unsteered", 1.0, None, 0.0), (first[0], 0.05, first[1], loss), ("caa", 0.4, None, 0.0),
        ("detox", 0.9, None, 0.0),
    ):  # fmt: skip
        options = {} if name == "unsteered" else {"tuning": bounded}
        toxic(tmp_path, name, times, about, **options)
        path = write(tmp_path, "fluency", name, {"perplexity": np.linspace(2.5, 3, 30) + extra}, **options)
        if about:
            edit(path, method=about)
    table = only(tmp_path)
    bold = {table.frame["method"][i] for i in latex.best(table, "toxicity_reduction", True)}
    assert bold == {"caa"}
    (line,) = (
        line for line in latex.tabular(table).splitlines() if "steername{CAA~" in line or "steername{CAA$" in line
    )
    assert "mathbf" in line


def test_without_toxicity_the_headline_is_shown(tmp_path):
    for method, times in (("unsteered", 1.0), ("caa", 0.5)):
        write(tmp_path, "ab", method, {"matching_probability": times * LEVEL}, data=None)
    text = latex.document([only(tmp_path)])
    assert "method & strength & ab matching probability" in text and r"& $0.30$$^{*}$" in text
    assert r"\caption{Ab matching probability; tiny" in text and "n = 30" in text


def test_what_is_left_out_is_said(tmp_path):
    for method, times in (("unsteered", 1.0), ("caa", 0.5)):
        toxic(tmp_path, method, times)
        for i in range(21):
            write(tmp_path, f"suite_{i}", method, {"share": LEVEL})
    text = latex.document([only(tmp_path)])
    (line,) = (
        line for line in text.splitlines() if line.startswith("% not here but in the file that ends in _suites.tex")
    )
    assert all(f"suite_{i}" in line for i in range(21))


# -- compiled ------------------------------------------------------------------------------------------------------

ONE_AND_TWO = {
    "article": r"\documentclass[twocolumn]{article}",
    "A4": r"\documentclass[twocolumn,a4paper]{article}",
    "11 pt, 16 cm": r"\documentclass[11pt,a4paper,twocolumn]{article}\setlength{\textwidth}{16cm}"
    r"\setlength{\columnsep}{0.6cm}\setlength{\columnwidth}{7.7cm}",
}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
@pytest.mark.parametrize("kind", ONE_AND_TWO)
def test_it_compiles_and_nothing_is_too_wide(many, tmp_path, kind):
    """Without graphicx, so that no table can be shrunk."""
    for file in (many.tex, many.bib):
        shutil.copy(file, tmp_path / file.name)
    (tmp_path / "paper.tex").write_text(
        ONE_AND_TWO[kind] + r"\usepackage{booktabs}\begin{document}x\input{leaderboard}\clearpage"
        r"\bibliographystyle{plain}\bibliography{methods}\end{document}"
    )
    set_ = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    for command in (set_, ["bibtex", "paper"], set_, set_):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
        assert command[0] != "bibtex" or "Warning" not in done.stdout
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert [line for line in log.splitlines() if re.match("Overfull|LaTeX Warning|! ", line)] == []
