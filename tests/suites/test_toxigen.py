import json
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench.config import compose
from bench.data.hub_folder import readme
from bench.data.sources import Sources
from bench.model.decoding import Continuation
from bench.model.lm import Generated
from bench.suites.base import measure
from bench.suites.capability import Capability
from bench.suites.toxigen import GROUPS, NAME, ToxiGen, group_prompts
from methods.errors import SetupError
from tests.data.test_sources import MIRROR, make_mirror
from tests.tiny import tiny_lm

DECODING = {"max_new_tokens": 128, "temperature": 0, "stop": "\n"}


class Words:
    """Scores a text by its first word, a number."""

    name, measures = "words", "toxicity"

    def identity(self):
        return {"name": self.name, "version": 1}

    def __call__(self, prompts, completions):
        return [float(text.split()[0]) if text.strip() else 0.0 for text in completions]


def rows(number=3):
    """A list of walks for each group, and one of another kind and of another group."""
    listed = [{"prompt": f"- {g} walk {i}\n- {g} run {i}\n-", "group": g, "kind": "hate"} for g in GROUPS for i in range(number)]  # fmt: skip  # noqa: E501
    others = [{"prompt": "- other\n-", "group": "black", "kind": "neutral"}, {"prompt": "- x\n-", "group": "immigrant", "kind": "hate"}]  # fmt: skip  # noqa: E501
    return [*listed, *others]


@pytest.fixture
def sources(tmp_path):
    root = make_mirror(tmp_path / "mirror", NAME, rows(), config="prompts")
    return Sources(mirror=str(root), cache=tmp_path / "cache", offline=True)


class Said:
    """Says a score: 0.9 about two groups, 0.2 about the others, nothing once."""

    def __init__(self):
        self.decoding = None

    def generate(self, lm, prompts, num_samples):
        assert num_samples == 1
        self.decoding = lm.sampling
        said = []
        for text in prompts:
            word = "0.9" if " women " in text or " black " in text else "0.2"
            said.append([Continuation("" if "muslim walk 0" in text else f" {word} walks", True)])
        return Generated(None, lambda: said)


def test_shares_over_all_texts_and_by_group(sources):
    store = Said()
    lm = replace(tiny_lm(), store=store)
    found = measure(ToxiGen(sources=sources, scorers=[Words()], decoding=DECODING), lm, "test")
    shares = {name: one.value for name, one in found.metrics.items()}
    assert shares.pop("words.toxic_share") == pytest.approx(2 / 14)
    assert shares.pop("words.mean_toxicity") == pytest.approx((6 * 0.9 + 35 * 0.2 + 0.0) / 42)
    assert shares == {f"words.toxic_share.{group}": float(group in ("women", "black")) for group in GROUPS}
    assert found.metrics["words.toxic_share"].n == 42 and found.metrics["words.toxic_share.women"].n == 3
    assert not found.metrics["words.toxic_share"].higher_is_better
    assert (store.decoding.max_new_tokens, store.decoding.temperature, store.decoding.stop) == (128, 0, "\n")
    assert not {"text", "prompt"} & set(found.scores.columns)


def test_so_many_of_each_group_and_dev_asks_others(sources):
    suite = ToxiGen(sources=sources, scorers=[Words()], per_group=2, dev_prompts=14)
    test, dev = (suite.texts(split)[0] for split in ("test", "dev"))
    for group in GROUPS:
        assert sum(one.group == group for one in test) == 2 and sum(one.group == group for one in dev) == 1
    assert not {one.id for one in test} & {one.id for one in dev}
    assert suite.identity("test") != replace(suite, per_group=3).identity("test")
    assert len(replace(suite, per_group=4).texts("test")[0]) == 3 * 14  # as many as there are


def test_the_hub_has_a_split_a_group_and_escaped_line_breaks(tmp_path, sources):
    folder = tmp_path / "hub" / NAME
    folder.mkdir(parents=True)
    splits = {}
    for group in GROUPS:
        (folder / f"{group}.jsonl").write_text(
            "".join(json.dumps({"text": f"- {group} walk {i}\\n- {group} run {i}\\n-"}) + "\n" for i in range(3))
        )
        splits[f"hate_{group}_1k"] = f"{group}.jsonl"
    (folder / "README.md").write_text(readme({"prompts": splits}, "as on the hub"))
    hub = Sources(mirror=str(tmp_path / "hub"), cache=tmp_path / "cache", offline=True)
    assert group_prompts(hub)[0] == group_prompts(sources)[0]
    assert len(group_prompts(hub)[1]) == 14


def test_what_is_not_there(tmp_path):
    nowhere = Sources(mirror=str(tmp_path), cache=tmp_path / "cache", offline=True)
    with pytest.raises(
        SetupError, match="ToxiGen's prompts are in no wheel, and the hub gives them to .*hf auth"
    ) as no:
        group_prompts(nowhere)
    command = f"hf download {NAME} --repo-type dataset --local-dir FOLDER/{NAME}"
    assert command in str(no.value) and "set runtime.mirror=FOLDER" in str(no.value)
    detection = Capability(name="toxigen_classification", sources=nowhere, tasks=["toxigen"])
    with pytest.raises(SetupError, match=command):
        detection.identity("test")
    root = make_mirror(tmp_path / "few", NAME, [r for r in rows() if r["group"] != "trans"], config="prompts")
    with pytest.raises(SetupError, match="from mirror has no hateful prompts about trans"):
        group_prompts(Sources(mirror=str(root), cache=tmp_path / "cache", offline=True))
    root = make_mirror(tmp_path / "bad", NAME, [{"prompt": "- x\n-", "group": "trans"}], config="prompts")
    with pytest.raises(SetupError, match="no column kind"):
        group_prompts(Sources(mirror=str(root), cache=tmp_path / "cache", offline=True))


def test_broken_prompts_are_no_reason_to_look_for_others(tmp_path, sources):
    (Path(sources.mirror) / NAME / "data" / "rows.jsonl").write_text('{"prompt": ')
    with pytest.raises(SetupError) as caught:
        group_prompts(sources)
    assert str(caught.value).startswith(f"{NAME} (prompts), split train from mirror cannot be read; a file of it")


def test_the_detection_task_prefers_the_held_out_rows(tmp_path):
    """The config's order; whichever is there names the source, so the two are never taken for one another."""
    row = {"text": "walks", "target_group": "trees", "toxicity_ai": 1.0, "toxicity_human": 5.0}
    configs = compose.compose(["suite=[toxigen_classification]"]).suite.toxigen_classification.configs
    for have, expected in ((["annotated"], "annotated"), (["annotated", "annotated_heldout"], "annotated_heldout")):
        folder = tmp_path / "-".join(have) / NAME
        folder.mkdir(parents=True)
        for name in have:
            (folder / f"{name}.jsonl").write_text(json.dumps(row | {"target_group": name}) + "\n")
        (folder / "README.md").write_text(readme({name: {"test": f"{name}.jsonl"} for name in have}, "a copy"))
        own = Sources(mirror=str(folder.parents[1]), cache=tmp_path / "cache", offline=True)
        suite = Capability(sources=own, tasks=["toxigen"], documents=None, configs=OmegaConf.to_container(configs))
        assert measure(suite, tiny_lm(), "test").info["sources"][0]["config"] == expected


@pytest.mark.mirror
def test_the_mirror_has_a_hundred_of_each_group():
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    groups, _ = group_prompts(Sources(mirror=str(MIRROR), offline=True))
    counts = {group: len(own) for group, own in groups.items()}
    assert set(counts) == set(GROUPS)
    assert sum(counts.values()) == 1347 and max(counts.values()) == 100  # some of its hundred lines are the same
    assert all(one.text.endswith("\n-") and "\\n" not in one.text for own in groups.values() for one in own)


@pytest.mark.mirror
def test_lm_evals_task_reads_the_rows_that_the_mirror_holds_out():
    if not MIRROR.is_dir():
        pytest.skip(f"no mirror at {MIRROR}; set STEERBENCH_MIRROR")
    mirror = Sources(mirror=str(MIRROR), offline=True)
    suite = Capability(name="toxigen_classification", sources=mirror, tasks=["toxigen"], documents=4,
                       configs={"toxigen": "annotated_heldout"})  # fmt: skip
    found = measure(suite, tiny_lm(), "test")
    assert found.info["tasks"]["toxigen"]["available"] == 940
    assert found.info["sources"][0]["config"] == "annotated_heldout"
    assert found.metrics["toxigen.accuracy"].n == 4
    with pytest.raises(SetupError, match="no split test"):
        replace(suite, configs=None).identity("test")
