"""What the READMEs say is so: numbers, tables, links, commands, lists."""

import ast
import contextlib
import importlib
import inspect
import re
import shlex
from fnmatch import fnmatchcase

import pytest

import methods
from bench.config import compose, folders
from bench.leaderboard.columns import NONE
from bench.records import identity, titles
from bench.steerbench import COMMANDS
from tests import claims
from tests.architectures import CONFIGS
from tests.claims import BENCH, README, RESULTS, ROOT, Claim

METHODS, CONF = "methods/README.md", "conf/README.md"
FILES = (README, BENCH, METHODS, CONF, RESULTS, "notebooks/README.md")
MOST_WORDS = 1100
VARIANTS = {"gemma3_multimodal", "falcon_multi_query", "falcon_alibi", "qwen3_moe_mixed"}
"""Further builds of an architecture that is listed by its name."""


def read(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def inline_code(file: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", read(file), flags=re.DOTALL))


def section(file: str, title: str) -> str:
    return read(file).split(f"## {title}\n")[1].split("\n## ")[0]


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_every_number_is_what_its_source_says(capsys):
    assert [f"{one.claim.file}: {one.shown} is {one.value:.4g}" for one in claims.all_found() if not one.holds] == []
    assert claims.main() == 0
    assert len(capsys.readouterr().out.splitlines()) > len(claims.CLAIMS)


@pytest.mark.parametrize("file", claims.FILES)
def test_every_exact_number_has_a_source(file):
    assert claims.without_source(file, claims.all_found(), claims.on_one_line(file)) == []


def test_a_wrong_number_and_one_without_a_source_are_seen():
    text = "It is 1.7 times, in 95 % and `0.3` of 12 % of [2308.10248](a/1.5.md), +2 % and Apache-2.0 and 0.25 here."
    claim = Claim(README, "It is {} times", "", lambda: [1.74])
    (one,) = claims.found(claim, text)
    assert one.holds and one.shown == "1.7"
    left = claims.without_source(README, [one], text)
    assert [re.findall(r"[+\d.]+(?= %| h?)", shown)[-1] for shown in left] == ["12", "+2", "0.25"]
    assert not next(claims.found(claim._replace(values=lambda: [1.76]), text)).holds
    with pytest.raises(ValueError, match="found 0 times in README.md"):
        next(claims.found(claim._replace(words="It was {} times"), text))
    with pytest.raises(ValueError, match=r"with values \[\]"):
        next(claims.found(claim._replace(values=list), text))


def test_the_table_of_the_readme_is_the_published_one():
    """Each of its rows and columns is one of results/published/quickstart/leaderboard.md, in the same order."""
    (shown,) = claims.TABLE.findall(read(README))
    rows = claims.markdown_rows(shown)
    named = {titles.with_names([one])[one]: titles.title(one) for one in folders.groups()["method"]}
    published = {
        named.get(row["method"], row["method"]): row
        for row in claims.markdown_rows(read("results/published/quickstart/leaderboard.md"))
    }
    assert [row["method"] for row in rows] == [name for name in published if name in {row["method"] for row in rows}]
    wrong = [
        f"{row['method']}: {title} is {published[row['method']].get(title)!r} there, {cell!r} here"
        for row in rows
        for title, cell in row.items()
        if title != "method" and cell != published[row["method"]].get(title)
    ]
    assert wrong == [] and len(rows) > 3 and rows[0]["change"] == NONE


# -- the first page ---------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(read(README).split()) <= MOST_WORDS


def slug(heading: str) -> str:
    """A heading as GitHub links to it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("file", FILES)
def test_links_within_the_repository_lead_somewhere(file):
    text = re.sub(r"```.*?```", "", read(file), flags=re.DOTALL)
    wrong = []
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / file).parent / name if name else ROOT / file
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        if not path.exists() or (anchor and anchor not in map(slug, headings)):
            wrong.append(target)
    assert wrong == []


# -- commands and names -----------------------------------------------------------------------------------------------


def commands(file: str) -> list[list[str]]:
    """The commands that a README shows, but for those with a file or a name of the reader's own."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", read(file), re.DOTALL)).replace("\\\n", " ").splitlines()
    lines = [one for one in [*blocks, *inline_code(file)] if one.startswith(("python -m bench", "make "))]
    told = [shlex.split(one, comments=True) for one in lines]
    return [one for one in told if not re.search(r"\bmine\b|\.\.\.|searchpath|unigram_bias", " ".join(one))]


@pytest.mark.parametrize("file", FILES)
def test_every_command_is_one(file, capsys):
    for words in commands(file):
        if words[0] == "make":
            assert f"\n{words[1]}:" in read("Makefile"), words
            continue
        _, _, name = words[2].partition(".")
        assert not name or name in COMMANDS, words
        flags = [one for one in words[3:] if one.startswith("--")]
        settings = [one for one in words[3:] if "=" in one and one.partition("=")[0] not in ("format", "output")]
        if not name:
            job, *_ = compose.jobs([one for one in settings if one not in flags], "-m" in words)
            compose.compose([one for one in job if "=" in one])  # tests/config/test_experiments.py has all jobs
        else:
            compose.compose(settings)
    assert capsys.readouterr().err == ""


def test_the_flags_in_the_readmes_are_known(capsys):
    shown = {(words[2].partition(".")[2], flag) for file in FILES for words in commands(file)
             for flag in words[3:] if flag.startswith("--") and words[0] != "make"}  # fmt: skip
    for name, flag in shown - {("", "--help"), ("", "--cfg")}:
        with contextlib.suppress(SystemExit):
            importlib.import_module(f"bench.{COMMANDS[name].module}").main(["--help"])
        assert flag in capsys.readouterr().out, (name, flag)
    assert len(shown) > 3


@pytest.mark.parametrize("file", FILES)
def test_every_choice_that_is_named_is_there(file):
    groups = folders.groups()
    named = [pair for code in inline_code(file) for pair in re.findall(r"(?<![\w./])(\w+)=(\w+)", code)]
    wrong = [f"{group}={one}" for group, one in named
             if group in groups and one not in (*groups[group], "mine", "unigram_bias")]  # fmt: skip
    assert wrong == []


def test_every_group_suite_scorer_and_experiment_is_described():
    groups, told = folders.groups(), inline_code(CONF)
    wanted = [*groups, *groups["suite"], *groups["scorer"], *groups["experiment"], *groups["tuning"], *groups["pairs"],
              *groups["examples"], *groups["harmful"], *groups["background"], *groups["labelled"],
              *groups["sampling"]]  # fmt: skip
    assert [name for name in wanted if not any(fnmatchcase(name, one) for one in told)] == []


def test_the_table_of_methods_is_that_of_the_classes():
    """Each row begins with the title, which is a link where there is a paper, and ends with the family."""
    rows = {cells[0].strip("`"): (cells[1].partition(": ")[0], cells[2])
            for line in read(METHODS).splitlines() if line.startswith("| `")
            for cells in [[cell.strip() for cell in line.strip("|").split("|")]]}  # fmt: skip
    known = {one.name: one for name in methods.__all__ if hasattr(one := getattr(methods, name), "strength_unit")}
    assert rows == {
        name: (f"[{one.title}](https://arxiv.org/abs/{one.cite})" if one.cite else one.title, one.family)
        for name, one in known.items()
    }
    assert set(rows) == set(folders.groups()["method"])


def test_the_architectures_listed_are_those_tested():
    told = " ".join(section(METHODS, "Model architectures").split())
    listed = told.split("random models: ")[1].split(". Models with")[0]
    names = {re.sub(r"[\s\-]", "", one).lower() for one in listed.split(",")}
    assert names == {name.replace("_", "") for name in set(CONFIGS) - VARIANTS}


def test_the_tree_names_every_folder_and_the_glossary_every_id():
    tree = re.search(r"```\nbench/\n(.*?)```", read(BENCH), re.DOTALL)[1]
    entries = {path.stem for path in (ROOT / "bench").iterdir() if path.suffix in ("", ".py")} - {"__pycache__", "conf"}
    assert entries <= set(re.findall(r"\w+", tree))
    functions = [one.name for one in ast.parse(inspect.getsource(identity)).body if isinstance(one, ast.FunctionDef)]
    ids = [name.replace("_", " ") for name in functions if name.endswith("_id")]
    assert len(ids) == 4 and all(f"| {one} |" in section(BENCH, "Glossary") for one in ids)


def test_every_published_folder_is_described():
    names = {path.name for path in claims.PUBLISHED.iterdir()} - {"README.md"}
    assert names == {line.split("`")[1] for line in section_of_table(RESULTS)}


def section_of_table(file: str) -> list[str]:
    return [line for line in read(file).split("\n## ")[0].splitlines() if line.startswith("| `")]
