"""Single texts with labels: which rows of a file or set become texts, of which class, and what a record says of it."""

import json
from dataclasses import replace

import pytest

from bench.data.sources import Sources
from bench.data.splits import Learnt
from bench.fit_data.labelled import LabelledFile, LabelledSet
from bench.run.cell import Cell
from bench.run.session import Session
from bench.run.validate import validate
from bench.suites.attitude import Attitude
from bench.suites.refusal import Jailbreak, OverRefusal
from bench.suites.topic import Topic, TopicPerplexity
from methods.base import Labelled
from methods.errors import SetupError
from tests.data.test_sources import make_mirror

TABLE = 'id,comment,rude,loud\n1,Be off,1,0\n2,"Good day,\nsir",0,0\n3,I shout,0,1\n4,Hello,0,0\n'


def jsonl(tmp_path, *rows):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "x.jsonl")


def classes(texts: Labelled):
    return dict(zip(texts.text, texts.label, strict=True))


def test_columns_of_a_table_with_several_labels(tmp_path):
    (tmp_path / "x.csv").write_text(TABLE)
    source = LabelledFile(path=str(tmp_path / "x.csv"), text="comment", label=["rude", "loud"])
    texts, about = source.load(None)
    assert classes(texts) == {"Be off": 1, "Good day,\nsir": 0, "I shout": 1, "Hello": 0}
    assert (about["texts"], about["undesired"], about["left_out"]) == (4, 2, 0)
    assert about["sources"][0]["name"] == "x.csv" and str(tmp_path) not in json.dumps(about)
    one = LabelledFile(path=str(tmp_path / "x.csv"), text="comment", label="rude")
    assert sum(one.load(None)[0].label) == 1
    assert one.identity() != source.identity()


def test_values_of_jsonl_numbers_names_and_lists(tmp_path):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": "good"}, {"text": "c", "label": ["bad", "x"]},
            {"text": "d", "label": True}, {"text": "e", "label": "neutral"}]  # fmt: skip
    source = LabelledFile(path=jsonl(tmp_path, *rows), undesired=[1, "bad", "true"], desired=["good"])
    texts, about = source.load(None)
    assert classes(texts) == {"a": 1, "b": 0, "c": 1, "d": 1}
    assert about["left_out"] == 1


def test_blank_doubled_and_contradicted_texts_are_left_out(tmp_path):
    rows = [{"text": t, "label": n} for t, n in (("a", 1), ("a", 1), ("b", 0), ("b", 1), (" ", 0), ("c", 0))]
    texts, about = LabelledFile(path=jsonl(tmp_path, *rows)).load(None)
    assert classes(texts) == {"a": 1, "c": 0}
    assert about["left_out"] == 4


@pytest.mark.parametrize("none", ["", "NaN", " "])
def test_a_row_without_a_label_is_of_no_class(tmp_path, none):
    (tmp_path / "x.csv").write_text(f"text,label\na,1\nb,0\nc,{none}\n")
    texts, about = LabelledFile(path=str(tmp_path / "x.csv")).load(None)
    assert classes(texts) == {"a": 1, "b": 0} and about["left_out"] == 1
    rows = [{"text": t, "label": one} for t, one in (("a", 1), ("b", 0), ("c", None), ("d", []), ("e", [1]))]
    texts, about = LabelledFile(path=jsonl(tmp_path, *rows)).load(None)
    assert classes(texts) == {"a": 1, "b": 0, "d": 0, "e": 1} and about["left_out"] == 1


def test_blanks_case_and_a_fraction_of_zero_change_no_label(tmp_path):
    labels = {"a": "Toxic", "b": " toxic ", "c": 2.0, "d": "2.0", "e": "2.5", " f ": "fine", "f": "toxic"}
    source = LabelledFile(
        path=jsonl(tmp_path, *({"text": text, "label": one} for text, one in labels.items())), undesired=["toxic", 2]
    )
    texts, about = source.load(None)
    assert classes(texts) == {"a": 1, "b": 1, "c": 1, "d": 1, "e": 0} and about["left_out"] == 2
    assert source.identity() == replace(source, undesired=[2, "TOXIC", "2.0"]).identity()


def test_a_limit_that_leaves_one_class_is_named(tmp_path):
    path = jsonl(tmp_path, *({"text": f"text {i}", "label": int(i == 0)} for i in range(30)))
    with pytest.raises(SetupError, match="labelled.limit=4: none of so few texts is undesired; raise it"):
        LabelledFile(path=path, limit=4).load(None)


def test_a_larger_limit_contains_a_smaller_one(tmp_path):
    path = jsonl(tmp_path, *({"text": f"text {i}", "label": i % 3 // 2} for i in range(30)))
    small, large = (LabelledFile(path=path, limit=limit).load(None)[0] for limit in (10, 20))
    assert small.text == large.text[:10] and len(small.text) == 10
    with pytest.raises(SetupError, match="labelled.limit: 31 were asked for, and there are 30"):
        LabelledFile(path=path, limit=31).load(None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"undesired": [2]},
            r"of 2 texts none is undesired; the values of label are 1 \(1\), 0 \(1\): set l",
        ),
        ({"desired": [7]}, "of 1 texts none is desired; .* set labelled.desired"),
        ({"undesired": [1], "desired": ["1", 0]}, "both hold 1"),
        ({"undesired": []}, "name a column, and a value"),
        ({"label": "kind"}, "line 1: kind is missing"),
    ],
)
def test_what_gives_no_two_classes_is_told(tmp_path, options, message):
    path = jsonl(tmp_path, {"text": "a", "label": 1}, {"text": "b", "label": 0})
    with pytest.raises(SetupError, match=message):
        LabelledFile(path=path, **options).load(None)


def test_a_column_of_empty_texts_is_told(tmp_path):
    path = jsonl(tmp_path, {"text": "", "label": 1}, {"text": " ", "label": 0})
    with pytest.raises(SetupError, match="labelled.text=text: every text of this column is empty"):
        LabelledFile(path=path).load(None)


BROKEN = {
    "text,label\na,1,2\n": "line 2: 3 cells, where the first line names 2 columns; its first line has to name",
    "comment,label\na,1\n": "line 1: it names no column text, but comment, label",
    "text,label,text\na,1,b\n": "line 1: it names a column twice: text, label, text",
    'text,label\n"a\nb"c,1\n': "line 3: not valid CSV: ",
    "text,label\n": "the file is empty",
    "": "line 1: it names no column text, label, but none",
}


@pytest.mark.parametrize("content", BROKEN)
def test_a_table_that_cannot_be_read_is_told(tmp_path, content):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(SetupError) as caught:
        LabelledFile(path=str(tmp_path / "x.csv")).check()
    assert BROKEN[content] in str(caught.value)


def test_a_text_that_is_no_string_is_named(tmp_path):
    with pytest.raises(SetupError, match="line 2: text is not a string"):
        LabelledFile(path=jsonl(tmp_path, {"text": "a", "label": 1}, {"text": 3, "label": 0})).check()


def test_a_set_of_a_mirror(tmp_path):
    make_mirror(tmp_path / "mirror", "a/tweets", [{"tweet": "x", "class": 0}, {"tweet": "y", "class": 2}])
    sources = Sources(mirror=str(tmp_path / "mirror"), cache=tmp_path / "cache")
    source = LabelledSet(sources=sources, data="a/tweets", text="tweet", label="class", undesired=[0, 1])
    texts, about = source.load(None)
    assert classes(texts) == {"x": 1, "y": 0}
    assert about["sources"][0]["name"] == "a/tweets" == source.identity()["source"]["name"]


@pytest.mark.parametrize("text", [7, ["x"]])
def test_a_column_of_a_set_that_holds_no_texts(tmp_path, text):
    make_mirror(tmp_path / "mirror", "a/tweets", [{"tweet": text, "class": 0}, {"tweet": text, "class": 2}])
    sources = Sources(mirror=str(tmp_path / "mirror"), cache=tmp_path / "cache")
    with pytest.raises(SetupError, match="labelled.text=tweet: this column of .* holds no texts"):
        LabelledSet(sources=sources, data="a/tweets", text="tweet", label="class").load(None)


def test_a_suite_that_asks_the_texts_it_learns_from_refuses(tmp_path):
    sources = Sources(mirror=str(tmp_path), cache=tmp_path / "cache")
    asks = Attitude(sources=sources, scorers=[], data="nyu-mll/glue")
    for split, told in (("train", None), ("validation", "let it learn from another split or set, or have")):
        why = asks.leak(LabelledSet(sources=sources, data="nyu-mll/glue", config="sst2", split=split).learnt())
        assert why is told is None or told in why
    with pytest.raises(SetupError, match="probe_rows learns from the split validation of nyu-mll/glue"):
        Cell(validate([
            "method=probe_rows", "method.learns_from=labelled",
            "suite=[sentiment]", "suite.sentiment.data=nyu-mll/glue",
            "labelled.data=nyu-mll/glue", "labelled.config=sst2", "labelled.split=validation", "labelled.text=sentence",
            "labelled.label=label", "strength=1",
        ]), Session())  # fmt: skip


def test_a_suite_refuses_the_file_or_set_of_its_texts(tmp_path):
    (tmp_path / "x.csv").write_text(TABLE)
    copy = tmp_path / "elsewhere.csv"
    copy.write_text(TABLE)
    learnt = LabelledFile(path=str(tmp_path / "x.csv"), text="comment", label="rude").learnt()
    sources = Sources(mirror=str(tmp_path), cache=tmp_path / "cache")
    words = {"words": ["bird"], "path": str(copy), "sources": sources}
    of_file = {"sources": sources, "scorers": [], "data": "file", "path": str(copy)}
    for suite in (Jailbreak(**of_file), Attitude(**of_file), Topic(**words, scorers=[]), TopicPerplexity(**words)):
        assert f"learns from elsewhere.csv, whose texts suite.{suite.name} asks" in suite.leak(learnt)
        assert suite.leak(Learnt()) is None
    for suite, name, split in (
        (OverRefusal(sources=sources, scorers=[]), "Paul/XSTest", "train"),
        (TopicPerplexity(sources=sources, words=["bird"]), "stanfordnlp/imdb", "test"),
    ):
        assert f"learns from the split {split} of {name}" in suite.leak(Learnt(sets=[(name, split)]))
