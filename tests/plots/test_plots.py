import os
import subprocess
import sys

import pytest

from bench.leaderboard.frame import tables
from bench.plots import __main__, draw, style
from bench.records.table import read_records
from tests.record_files import cell, tuning, write

TOXICITY = "profanity_check.expected_maximum_toxicity_k5"
ALLOWED = ("tradeoff", "changes", "capability", "cost")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Two methods, not tuned; the figures of more of them are in test_figures."""
    results = tmp_path_factory.mktemp("full")
    cell(results, "unsteered", 1.0, 0.0, 1.0, n=12)
    cell(results, "caa", 0.5, 0.1, 0.9, n=12)
    return results, tables(read_records(results / "runs")[0])


@pytest.fixture(scope="module")
def files(full):
    """Every figure that the records allow, by name."""
    return drawn(draw.rebuild(*full))


@pytest.fixture
def png_alone(monkeypatch):
    """For what is about names and numbers of files: the fonts of a PDF take half the time."""
    monkeypatch.setattr("bench.plots.style.FILES", {"png": style.FILES["png"]})


def drawn(paths):
    return {path.name: path.read_bytes() for path in paths}


def test_everything_that_the_records_allow_as_pdf_svg_and_png(full, files):
    assert list(files) == [f"{name}.{kind}" for name in ALLOWED for kind in ("pdf", "svg", "png")]
    assert drawn((full[0] / "figures" / name) for name in files) == files
    assert files["cost.png"].startswith(b"\x89PNG") and files["cost.pdf"].startswith(b"%PDF")
    assert b"FontFile2" in files["cost.pdf"] and b"Type3" not in files["cost.pdf"]  # fonttype 42, as papers ask
    assert b"<dc:date>" not in files["cost.svg"] and b"CreationDate" not in files["cost.pdf"]


@pytest.mark.slow
def test_the_same_records_give_the_same_files_in_another_process(full, files):
    results, _ = full
    for name in files:
        (results / "figures" / name).unlink()
    code = "import sys; from pathlib import Path; from bench.plots import draw; draw.rebuild(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, results], check=True, env=os.environ | {"PYTHONHASHSEED": "77"})
    assert drawn(results / "figures" / name for name in files) == files


def test_one_figure_by_name_in_one_column(full, capsys):
    results, _ = full
    assert __main__.main(["cost", "--results", str(results), "--width", "single"]) == 0
    said = capsys.readouterr().out.split()
    assert said == [str(results / "figures" / f"cost_single.{kind}") for kind in style.FILES]


def test_what_is_missing_is_said_with_what_to_run(full, files, png_alone, capsys):
    results, _ = full
    assert __main__.main(["--results", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    missing = {line.split(" not drawn: ")[0]: line for line in lines if " not drawn: " in line}
    assert set(missing) == set(draw.KINDS) - set(ALLOWED)
    assert all("run `python -m bench " in line for line in missing.values())
    assert __main__.main(["layers", "--results", str(results)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("layers not drawn: no method was run at several layers")


def test_each_command_that_is_told_composes():
    from bench.config import compose

    for name, kind in draw.KINDS.items():
        with pytest.raises(draw.NothingToDraw) as error:
            kind.draw(draw.pd.DataFrame(columns=["table"]))
        for command in str(error.value).split("`")[1::2]:
            words = command.removeprefix("python -m bench").split()
            if command.startswith("python -m bench"):
                given = [word for word in words if word not in ("-m", "runtime.mirror=FOLDER")]
                assert compose.jobs(given, "-m" in words), name


def test_help_has_a_line_for_each_figure(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--help"])
    said = capsys.readouterr().out.splitlines()
    for name, kind in draw.KINDS.items():
        assert any(line.split() == [name, *kind.about.split()] for line in said)
        assert len(kind.about) < 70
    with pytest.raises(SystemExit):
        __main__.main(["nonsense"])
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


@pytest.mark.slow
def test_figures_of_one_model(tmp_path, png_alone, capsys):
    for name, toxic in (("small", 0.4), ("org/large", 0.9)):
        for method, factor in (("unsteered", 1.0), ("caa", toxic)):
            cell(tmp_path, method, factor, 0.0, 1.0, n=12, model={"name": name, "sha256": "0" * 12})
    assert __main__.main(["tradeoff", "--results", str(tmp_path)]) == 0
    both = capsys.readouterr().out.split()
    assert [path.rpartition("/")[2] for path in both] == ["tradeoff.png", "tradeoff-2.png"]
    assert __main__.main(["tradeoff", "--results", str(tmp_path), "--model", "org/large"]) == 0
    assert capsys.readouterr().out.split()[0] == str(tmp_path / "figures/org_large/tradeoff.png")
    folder = tmp_path / "figures"
    assert (folder / "org_large/tradeoff.png").read_bytes() in [
        (folder / f"tradeoff{end}.png").read_bytes() for end in ("", "-2")
    ]
    assert __main__.main(["tradeoff", "--results", str(tmp_path), "--model", "tiny"]) == 2
    assert capsys.readouterr().err == (
        "error: --model tiny: no record of this model; there are records of org/large, small\n"
    )


def test_records_are_read_again_only_where_something_was_tuned(full, png_alone, monkeypatch):
    results, found = full
    monkeypatch.setattr(draw, "read_records", lambda _: pytest.fail("the records were read again"))
    assert len(draw.rebuild(results, found)) == len(ALLOWED)


def test_trials_of_tuning_have_a_name_of_their_own(tmp_path, png_alone):
    tuned = tuning([(2.0, 1.0, 0.2), (4.0, 1.1, 0.5)], 4.0)
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=12)
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=10, split="dev", setting="dev")
    cell(tmp_path, "caa", 0.5, 0.1, 1.0, n=12, tuning=tuned)
    for strength in (2.0, 4.0):
        cell(tmp_path, "caa", 0.6, 0.1, 1.0, n=10, split="dev", setting="dev", strength=strength)
    paths, _ = draw.write(draw.Source(tmp_path), ["strength"])
    assert [path.name for path in paths] == ["strength_dev.png"]


def test_what_was_not_measured_is_not_drawn(tmp_path, png_alone):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: [0.8, 0.6]})
    assert draw.rebuild(tmp_path) == [] and not (tmp_path / "figures").exists()
    write(tmp_path, "rtp", "caa", {TOXICITY: [0.4, 0.5]})  # neither fluency nor capability: no trade-off
    assert {path.stem for path in draw.rebuild(tmp_path)} == {"changes", "cost"}


def test_errors_are_one_message(tmp_path, capsys):
    assert __main__.main(["--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no records: ")
    for method, values in (("unsteered", [0.8, 0.6]), ("caa", [0.4, 0.5])):
        write(tmp_path, "rtp", method, {TOXICITY: values})
    (tmp_path / "figures").write_text("in the way")
    assert __main__.main(["--results", str(tmp_path)]) == 2
    assert "cannot write the figure to" in capsys.readouterr().err


def test_further_pages_are_files_of_their_own(full, png_alone):
    (caa,) = (row for _, row in full[1][0].frame.iterrows() if row["method"] == "caa")
    rows = [caa.copy() for _ in range(14)]
    for i, row in enumerate(rows):
        row["method"] = f"method_{i}"
    frame = draw.pd.DataFrame([full[1][0].frame.iloc[0], *rows])
    kind = draw.KINDS["cost"]._replace(drawings=lambda _: [("", (frame,))])
    found = [one.name for one in draw.drawn(draw.Source(*full), ["cost"]) if one.figure]
    assert found == ["cost"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(draw.KINDS, "cost", kind)
        found = [one.name for one in draw.drawn(draw.Source(*full), ["cost"], "single") if one.figure]
    assert found == ["cost_single", "cost_single-p2"]


@pytest.mark.slow
def test_no_warning_reaches_the_terminal(full):
    command = [sys.executable, "-W", "error", "-m", "bench.plots", "--results", str(full[0])]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    assert told.stderr == ""


def test_other_processes_write_the_same_files(full, files):
    results, found = full
    for name in files:
        (results / "figures" / name).unlink()
    paths, missing = draw.write(draw.Source(results, found), processes=2)
    assert drawn(paths) == files and missing
