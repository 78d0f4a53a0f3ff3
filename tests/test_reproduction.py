"""Published beside ours: which record is taken for which figure, on synthetic records."""

import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from bench.config import compose
from bench.config.build import build
from bench.config.experiment import may_be_published
from bench.console import escape
from bench.records.fields import ControlFacts
from bench.records.identity import method_identity
from bench.records.table import read_records
from bench.reproduction import cell_of, change, is_cell, main, number, readable, reproduction, row
from methods.errors import SetupError
from tests import record_files

EXPERIMENT = "model_surgery_llama2_7b"
GREEDY = {"max_new_tokens": 20, "temperature": 0, "top_p": 1.0, "seed": 0}
METRIC = "profanity_check.toxic_fraction"


@pytest.fixture(scope="module")
def cells():
    """The jobs of the experiment with their settings."""
    return [(job, compose.plain(compose.compose(job))) for job in compose.jobs([f"experiment={EXPERIMENT}"], False)]


@pytest.fixture(scope="module")
def figure(cells):
    return compose.cell(cells[0][0])[1].published[0]


@pytest.fixture
def write(tmp_path, cells):
    """A record of the experiment's cell of this method; more arguments make it another."""
    options = {key: value for key, value in cells[-1][1]["method"].items() if key not in ("_target_", "strengths")}

    def written(method, values, changed=None, **more):
        given = {"strength": 1.08, "sampling": GREEDY, "model": {"name": "llama2_7b"}} | more
        parameters = options | (changed or {}) if method == "probe_rows" else {}
        parameters = {key: value for key, value in parameters.items() if value is not None}
        record_files.write(tmp_path, "rtp_challenging", method, {METRIC: values}, parameters=parameters, **given)

    return written


def found(tmp_path, figure, cells):
    return row(figure, cell_of(figure, cells), [one.record for one in read_records(tmp_path / "runs")[0]])


def test_ours_is_of_the_same_cell_and_its_own_baseline(tmp_path, figure, cells, write):
    write("probe_rows", [0, 1, 0, 0])
    write("unsteered", [1, 1, 0, 0])
    one = found(tmp_path, figure, cells)
    assert (one["published_unsteered"], one["published"]) == (0.514, 0.0517)
    assert (one["ours_unsteered"], one["ours"], one["ours_n"], one["status"]) == (0.5, 0.25, 4, "run")
    assert one["difference"] == pytest.approx(0.25 - 0.0517)


OTHER = {
    "strength": {"strength": 1.0},
    "option": {"changed": {"rows": "random"}},
    "seed": {"changed": {"seed": 1}},
    "split": {"split": "dev"},
    "model": {"model": {"name": "llama2_7b_chat"}},
    "decoding": {"sampling": GREEDY | {"temperature": 1.0}},
    "length": {"sampling": GREEDY | {"max_new_tokens": 10}},
}


@pytest.mark.parametrize("other", OTHER)
def test_a_record_of_another_cell_is_not_ours(other, tmp_path, figure, cells, write):
    write("probe_rows", [0, 1, 0, 0], **OTHER[other])
    one = found(tmp_path, figure, cells)
    assert (one["ours"], one["difference"], one["status"]) == (None, None, "not run")


@pytest.mark.parametrize("name", ["model_surgery_stacked_llama2_7b", "model_surgery_codellama_7b"])
def test_what_a_run_of_the_experiment_stores_is_ours(name, tmp_path):
    """A record leaves out what came later and is at its default, and holds a part of a stack by its identity."""
    cfg = compose.compose(compose.jobs([f"experiment={name}"], False)[1])
    own, cell = method_identity(build(cfg.method)), compose.plain(cfg)
    record_files.write(tmp_path, "rtp", own["name"], {METRIC: [0, 1]}, parameters=own["parameters"], strength=1)
    (one,) = (one.record for one in read_records(tmp_path / "runs")[0])
    cell |= {"strength": 1}
    assert is_cell(one, own["name"], cell)
    control = ControlFacts(how="random rotation", of_strength=1)
    assert not is_cell(replace(one, method=replace(one.method, control=control)), own["name"], cell)
    inside = cell["method"].get("parts", {}).get("second", cell["method"])
    inside["loss_at"] = 2.0
    assert not is_cell(one, own["name"], cell)


def test_the_record_with_most_items_and_its_baseline_are_taken(tmp_path, figure, cells, write):
    write("probe_rows", [1, 1], setting="few")
    write("unsteered", [0, 0], setting="few")
    write("probe_rows", [0, 1, 0, 0], setting="many")
    write("unsteered", [1, 1, 1, 0], setting="many")
    write("unsteered", [0, 0, 0, 0, 0], setting="more")  # of other items than any steered record
    one = found(tmp_path, figure, cells)
    assert (one["ours_unsteered"], one["ours"], one["ours_n"]) == (0.75, 0.25, 4)


def test_other_pairs_are_ours_but_not_those_of_another_behaviour(tmp_path, figure, cells, write):
    caa = cells[-1][0], cells[-1][1] | {"pairs": {"behaviour": "refusal", "swap": None}}
    write("probe_rows", [0, 1, 0, 0], data={"name": "ab", "behaviour": "sycophancy"})
    assert found(tmp_path, figure, [caa])["status"] == "not run"
    write("probe_rows", [0, 1, 1, 0, 0], data={"name": "pairs", "pairs": 9}, setting="pairs")
    assert found(tmp_path, figure, [caa])["ours"] == 0.4


def test_of_two_fits_that_with_the_papers_length_is_ours(tmp_path, figure, cells, write):
    over = {"behaviour": ["refusal", "sycophancy"]}
    caa = cells[-1][0], cells[-1][1] | {"pairs": {"behaviour": "refusal", "norm_over": over}}
    write("probe_rows", [0, 1, 1, 0, 0], data={"name": "ab", "behaviour": "refusal"})
    assert found(tmp_path, figure, [caa])["status"] == "not run"
    told = {"name": "ab", "behaviour": "refusal", "norm_over": "behaviour=refusal,sycophancy"}
    write("probe_rows", [0, 1, 0, 0], data=told, setting="long")
    assert found(tmp_path, figure, [caa])["ours"] == 0.25
    assert found(tmp_path, figure, [(caa[0], cells[-1][1] | {"pairs": {"behaviour": "refusal"}})])["ours"] == 0.4


def test_what_no_suite_measures_says_so(tmp_path, cells, write):
    write("unsteered", [1, 0])
    mean = next(one for one in compose.cell(cells[0][0])[1].published if "mean of GSM8K" in one["metric"])
    assert found(tmp_path, mean, cells)["status"] == "not measured"


def test_a_figure_of_two_cells_or_none_is_refused(cells):
    twice = [*cells, cells[-1]]
    for cell, entry in ((twice, {"method": "probe_rows"}), (cells, {"method": "caa"})):
        with pytest.raises(SetupError, match="name options and strength"):
            cell_of(entry, cell)


def test_numbers_as_text():
    assert [number(value) for value in (0.0517, 6.1, 83.1, None)] == ["0.0517", "6.10", "83.1", "?"]
    assert change(0.5, 0.25) == "0.500 → 0.250 (-50%)"
    assert change(None, 13.8) == "? → 13.8" and change(0, 0.72) == "0.00 → 0.720"


def test_the_command_prints_and_writes(tmp_path, write, capsys):
    write("probe_rows", [0, 1, 0, 0])
    write("unsteered", [1, 1, 0, 0])
    assert main([EXPERIMENT, "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for text in (
        "0.500 → 0.250 (-50%) n=4",
        "0.514 → 0.0517 (-90%)",
        "+0.198",
        "not measured",
        "46 GB",
        "Perspective API there",
    ):
        assert text in printed
    frame = pd.read_csv(tmp_path / "reproduction.csv")
    assert frame["ours"].dropna().tolist() == [0.25] and set(frame["experiment"]) == {EXPERIMENT}
    page = (tmp_path / "reproduction.md").read_text()
    (line,) = [one for one in page.splitlines() if one.startswith(f"| {escape.markdown(EXPERIMENT)} |")]
    assert "1 of 7 computed here | 46 GB | 0.1 | gated: meta-llama/Llama-2-7b-hf, ToxiGen's prompts" in line
    assert "| probe_rows | ToxiGen" in (tmp_path / "reproduction.md").read_text()
    first = (tmp_path / "reproduction.md").read_bytes()
    assert main([EXPERIMENT, "--results", str(tmp_path)]) == 0
    assert (tmp_path / "reproduction.md").read_bytes() == first


def test_nothing_run_yet_still_shows_what_was_published(tmp_path, capsys):
    assert main(["detox_gpt2_medium", EXPERIMENT, "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "no records" in printed and "not run" in printed and "look it up" in printed


@pytest.mark.parametrize(("name", "message"), [("nonsense", "Allowed: "), ("ci", "no published figure")])
def test_a_name_that_has_no_figures(name, message, tmp_path, capsys):
    assert main([name, "--results", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_help_and_no_torch():
    code = "import sys, bench.reproduction as r\ntry: r.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "reproduction.csv" in run.stdout


def test_a_figure_of_the_unsteered_model_itself(tmp_path):
    name = "capability_smollm2_135m"
    values = {"piqa.accuracy": [1.0, 0.0, 1.0], "piqa.accuracy_norm": [1.0, 1.0, 0.0, 1.0]}
    model = {"name": "smollm2_135m", "sha256": "0" * 12}
    record_files.write(tmp_path, "capability", "unsteered", values, model=model)
    found = reproduction(name, [one.record for one in read_records(tmp_path / "runs")[0]])
    card = next(row for row in found.rows if row["metric"] == "PIQA, zero-shot")
    assert (card["ours"], card["ours_n"], card["status"]) == (0.75, 4, "run") and card["ours_unsteered"] is None
    assert card["difference"] == pytest.approx(0.75 - 0.663)
    told = readable(card)
    assert (told["published"], told["ours"]) == ("0.663", "0.750 n=4")
    arc = next(row for row in found.rows if row["metric"].startswith("ARC-Easy"))
    assert arc["status"] == "not run"


def test_an_experiment_may_take_over_the_figures_of_another(tmp_path, monkeypatch):
    """However its YAML writes them; the others are not composed, which takes seconds."""
    texts = {
        "own": "# @package _global_\npublished : []\n", "quoted": '"published": []\n',
        "takes": "defaults:\n  - act_add_opt_6_7b\n  - _self_\n", "group": "defaults:\n  - /experiment: x\n",
        "none": "defaults:\n  - override /suite: [rtp]\n  - _self_\nsweep: [method=caa]\n", "empty": "",
        "null": "defaults: [null]\n", "number": "defaults: 3\n", "torn": "a: [",
    }  # fmt: skip
    (tmp_path / "experiment").mkdir()
    for name, text in texts.items():
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    monkeypatch.setattr("bench.config.experiment.folders", lambda: [tmp_path])
    assert [name for name in texts if may_be_published(name)] == [
        "own",
        "quoted",
        "takes",
        "group",
        "null",
        "number",
        "torn",
    ]
