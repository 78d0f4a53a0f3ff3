import functools
import inspect
import io
import subprocess
import sys
import time
from typing import Any

import pytest
from hydra.utils import get_class
from rich.console import Console

from bench.__main__ import main
from bench.config import compose, folders, help
from bench.run import validate
from methods.errors import SetupError

CONF = folders.folder()
CHOICES = [(group, choice) for group, found in folders.groups().items() if group != "experiment" for choice in found]
LISTS = ("suite", "scorer")
RUNS = {"pairs": {"scorer", "flip", "flip_seed", "subset", "subset_seed", "norm_over"}}
"""Options of a group that the run reads and the class does not."""


def rounds() -> list[dict[str, str]]:
    """Choices of every group, so that each is in one of them; all suites and scorers in the first."""
    single = {group: found for group, found in folders.groups().items() if group not in (*LISTS, "experiment")}
    turns = [
        {group: found[turn % len(found)] for group, found in single.items()}
        for turn in range(max(map(len, single.values())))
    ]
    listed = {group: f"[{','.join(folders.groups()[group])}]" for group in LISTS}
    return [turns[0] | listed, *turns[1:]]


@functools.cache
def nodes() -> dict[tuple[str, str], Any]:
    """Every choice of every group, as it is composed."""
    found = {}
    for chosen in rounds():
        cfg = compose.compose([f"{group}={choice}" for group, choice in chosen.items()])
        found |= {(group, choice): cfg[group] for group, choice in chosen.items() if group not in LISTS}
        found |= {(group, name): node for group in LISTS if group in chosen for name, node in cfg[group].items()}
    return found


def test_every_yaml_composes_and_its_target_takes_every_key():
    wrong = []
    for (group, choice), node in nodes().items():
        takes = set(inspect.signature(get_class(node._target_)).parameters) if "_target_" in node else set(node)
        wrong += [f"{group}={choice}: {key}" for key in set(node) - takes - {"_target_"} - RUNS.get(group, set())]
    assert wrong == [] and set(nodes()) == set(CHOICES)


def test_every_yaml_begins_with_its_command():
    heads = {
        path: next(line for line in path.read_text().splitlines() if not line.startswith("# @package"))
        for path in sorted(CONF.rglob("*.yaml"))
    }
    wrong = {path.name: head for path, head in heads.items() if not head.startswith(("# python -m bench", "# make "))}
    assert wrong == {} and len(heads) > 80


def test_every_tuned_method_has_a_grid_of_the_same_length():
    grids = {choice: list(node.strengths) for (group, choice), node in nodes().items() if group == "method"}
    assert grids.pop("unsteered") == []
    assert {len(grid) for grid in grids.values()} == {5}, grids
    assert all(grid == sorted(grid) and min(grid) > 0 for grid in grids.values())


def test_a_sweep_is_a_product_and_overrides_its_experiment():
    jobs = compose.jobs(["method=caa,detox", "seed.sample=0,1"], multirun=True)
    assert jobs == [
        ["method=caa", "seed.sample=0"],
        ["method=caa", "seed.sample=1"],
        ["method=detox", "seed.sample=0"],
        ["method=detox", "seed.sample=1"],
    ]
    quick = compose.jobs(["experiment=quickstart"], multirun=False)
    assert len(quick) == len({tuple(job) for job in quick}) and ["method=caa", "experiment=quickstart"] in quick
    only = compose.jobs(["experiment=quickstart", "method=caa"], multirun=False)
    assert {line for job in only for line in job if line.startswith("method=")} == {"method=caa"}


def test_options_of_suites_that_are_not_chosen_are_dropped():
    cfg = validate.validate(["experiment=quickstart", "suite=[rtp]", "strength=1"])
    assert list(cfg.suite) == ["rtp"] and cfg.suite.rtp.k == 5


BAD = [
    (["method=cca"], "did you mean caa"),
    (["metod=caa"], "did you mean method"),
    (["suite.rtp.kk=3"], "did you mean suite.rtp.k"),
    (["+suite.rtp.kk=3"], "did you mean suite.rtp.k"),
    (["++sampling.topp=1"], "did you mean sampling.top_p"),
    (["suite=[rpt]"], "did you mean rtp"),
    (["sampling.top_p=1.5"], r"outside \(0, 1\]"),
    (["sampling.top_p=0"], r"outside \(0, 1\]"),
    (["model=local"], "model.path has no value"),
    (["model=local", "model.path=nowhere"], "no config.json"),
    (["strength=strong"], "a number in the method's unit, or auto"),
    (["method=caa", "suite=[rtp]"], "add them to suite"),
    (["method=caa", "tuning.options={layer:[0.3]}"], "tuning.options needs tuning.trials"),
    (["tuning.scorer=detoxify"], "add it to scorer"),
    (["suite.rtp.k=0"], "a whole number above 0"),
    (["runtime.results=/dev/null/x"], "cannot be written"),
    (["method=caa,detox"], "add -m"),
    (["experiment=quickstart,ci"], "is refused"),
    (["method"], "key=value"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_clear_message(arguments, message):
    with pytest.raises(SetupError, match=message):
        for job in compose.jobs(arguments, multirun=False):
            validate.validate(job)


def test_all_errors_at_once():
    with pytest.raises(SetupError) as caught:
        validate.validate(["sampling.top_p=2", "suite.rtp.dev_k=0", "suite.fluency.dev_k=1", "model.bos=x"])
    assert len(str(caught.value).splitlines()) == 3


def test_a_bad_option_gives_no_traceback_and_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["method=cca"]) == 2
    told = capsys.readouterr().err
    assert "did you mean caa" in told and "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


SLOW = {"torch", "transformers", "pandas", "scipy", "matplotlib"}


def test_the_first_page_of_help_fits_two_screens(capsys):
    """Every group and choice by name, every option of a cell, and the way to the rest."""
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    lines = page.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 120
    words = set(page.split())
    for group, choice in CHOICES:
        assert {group, choice} <= words
    assert {"strength", "control", "seed.fit", "runtime.results", "runtime.mirror"} <= words
    assert lines[-1].startswith("python -m bench --help GROUP shows the options") and "--help all" in lines[-1]


def test_help_of_one_group_has_its_options_alone(capsys):
    assert main(["--help", "sampling"]) == main(["sampling", "-h"]) == 0
    page = capsys.readouterr().out
    assert page.count("  sampling=greedy\n") == 2 and "sampling.top_p=0.9   in (0, 1]" in page
    assert "method" not in page
    assert main(["--help", "samplin"]) == 2
    assert capsys.readouterr().err == "error: --help samplin: there is no such group; did you mean sampling?\n"


def test_help_is_quick_and_names_every_option(tmp_path):
    code = f"import sys; from bench.__main__ import main; main(['--help', 'all']); assert not {SLOW} & set(sys.modules)"
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    seconds = time.monotonic() - start
    assert run.returncode == 0, run.stderr
    assert seconds < 10  # about one on an idle machine
    for group, choice in CHOICES:
        assert f"{group}={choice}" in run.stdout
    cfg = compose.compose(["suite=[rtp,capability,fluency]"])
    for suite, node in cfg.suite.items():
        for key in set(node) - {"_target_"}:
            assert f"suite.{suite}.{key}=" in run.stdout


OPTIONS = """\
# python -m bench method=mine
defaults: [caa, _self_]
_target_: methods.caa.CAA
text: "a # b: c" # in quotes
size: 3  # a number: whole
documents: {gsm8k: 50, asdiv: null} # by task
names: # in lines
  - one
  - "two # three"
decoding: # greedy
  temperature: 0
  deep: {a: 1}
bound: # at most
  {_target_: methods.caa.CAA, ratio: 1.25, least: null}
bare:
"""


def test_help_shows_each_value_with_its_comment(tmp_path):
    (tmp_path / "mine.yaml").write_text(OPTIONS)
    out = Console(width=100, file=io.StringIO())
    help._options(out, tmp_path / "mine.yaml", "method.")
    assert [line.strip() for line in out.file.getvalue().splitlines()] == [
        'method.text="a # b: c"   in quotes',
        "method.size=3   a number: whole",
        "method.documents={gsm8k: 50, asdiv: null}   by task",
        "method.names=[one, two # three]   in lines",
        "method.decoding=   greedy",
        "method.decoding.temperature=0",
        "method.decoding.deep={a: 1}",
        "method.bound=   at most",
        "method.bound.ratio=1.25",
        "method.bound.least=null",
    ]


def test_help_joins_wrapped_lines_and_keeps_tables(tmp_path):
    wide, table = f"# {'x' * 60} {'y' * 50} ends", f"#   weights   {'1 GB ' * 22}2 GB"
    (tmp_path / "mine.yaml").write_text(
        "\n".join(["# the command", wide, "# here.", "# A line", table, "# b   2", "a: 1"])
    )
    first, *rest = help._summary(tmp_path / "mine.yaml")
    assert first.endswith("ends here.") and rest == ["A line", table.removeprefix("# "), "b   2"]


def test_help_names_options_of_launchers_as_hydra_does(capsys):
    assert main(["--help", "launcher"]) == 0
    page = capsys.readouterr().out
    assert "\n    hydra.launcher.n_jobs=-1 " in page and "launcher.hydra" not in page
