"""What every method promises; each YAML in conf/method is picked up by itself.

The promises are those of `python -m bench.selftest`; tests/selftest/test_selftest.py shows that each check can fail.
"""

import dataclasses
import functools
import re

import pytest
from omegaconf import OmegaConf

from bench.config.build import build
from bench.selftest import reading
from bench.selftest.__main__ import examine
from bench.selftest.subject import Subject
from methods.base import Examples, FitData, Method, Pairs, title
from tests.architectures import lm_of
from tests.methods.yaml_files import ALL, FOLDER, load, node
from tests.tiny import CONFIGS as TINY
from tests.tiny import tiny_lm

OF_FILES = {"imported"}  # it steers by a file of the user's; its own tests ask it for the same promises
NAMES = [name for name in ALL if name not in OF_FILES]
ARCHITECTURES = ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "qwen3", "gemma3"))]
REFUSED = {("sasa", "gemma3")}  # a sliding window; tests/methods/test_architectures.py has all of them, and more models
PAIRS = Pairs(
    prompt=[
        "The quick brown fox", "People walk along the river", "A small bird in the old tree", "We talk about work",
        "The lazy dog and the fox", "On the long road home", "Bread and water near the", "The weather today is",
    ],
    desired=[
        " jumps over the dog", " and talk about love", " sings in the old tree", " and bread", " walk along",
        " people sing", " river", " quick and small",
    ],
    undesired=[
        " is lazy", " and talk about hate and the weather", " is old", " and the long lazy road home", " hate",
        " the water is over the tree", " lazy dog jumps", " long and old and lazy",
    ],
)  # fmt: skip
PROMPTS = ["The quick brown fox", "People walk along the water and talk about", "a small bird near the river sings"]
CONTINUATION = " the old tree and bread"
HARMFUL = Examples(["People walk along", "We talk about", "The"], [" and hate the dog", " hate and work", " lazy fox"])
DATA = {
    "pairs": PAIRS,
    "examples": Examples([*PAIRS.prompt, *HARMFUL.prompt], [*PAIRS.desired, *HARMFUL.completion]),
    "harmful": HARMFUL,
    "background": [*PAIRS.prompt, "The water near the old tree is quick and long."],
}


SHORTER = {  # trainings, of which a few steps show as much here, and a list with words that the tiny tokenizer has
    "activation_scaling": ["method.steps=5"],
    "instruction": ["method.layer=-1"],  # a block that sees it: the sliding windows of gemma3 are a few tokens long
    "lineas": ["method.steps=5"],
    "probe_rows": ["method.min_steps=100"],
    "stack": ["method.parts.first.min_steps=100"],
    "security_vector": ["method.vector_epochs=2"],
    "word_filter": ["method.min_log_odds=-9"],
}


def test_some_methods_were_found():
    assert {"unsteered", "prompt", "random_direction", "act_add", "caa"} <= set(NAMES)


def test_named_and_tuned_like_the_others():
    """The file is called what the table says; every method is tuned on as many strengths."""
    for name in ALL:
        method = load(name)
        assert method.name == name
        assert len(method.strengths) == (0 if method.family == "none" else 5), name


def test_every_method_has_its_papers_name_and_source():
    titles = {name: load(name).title for name in ALL}
    assert all(titles.values()) and len(set(titles.values())) == len(ALL)
    cited = {name for name in ALL if re.fullmatch(r"\d{4}\.\d{5}", load(name).cite)}
    assert set(ALL) - cited == {"unsteered", "prompt", "random_direction", "finetune", "stack", "imported"}
    for name in cited:
        assert load(name).cite in (FOLDER / f"{name}.yaml").read_text(), "as the head of its YAML has it"


def test_a_method_without_a_title_goes_by_its_name():
    class Plain(Method):
        name = "plain"

    assert (Plain.title, Plain.cite, Plain.seed) == ("", "", None)
    assert title(Plain()) == "plain"


def test_yaml_explains_every_option_and_how_to_run_it():
    for name in ALL:
        text = (FOLDER / f"{name}.yaml").read_text()
        assert text.startswith("# python -m bench") and f"method={name}" in text.splitlines()[0], name
        fields = {field.name for field in dataclasses.fields(load(name)) if field.init}
        assert set(OmegaConf.create(text)) - {"defaults"} == fields | {"_target_"}, name
        for key in fields:
            line = next(line for line in text.splitlines() if line.startswith(f"{key}:"))
            assert "  # " in line, f"{name}.{key} is not explained"


def test_yaml_and_class_agree_on_the_defaults():
    """A notebook that writes `CAA()` gets what `method=caa` gets."""
    for name in ALL:
        method = load(name)
        for field in dataclasses.fields(method):
            if field.default is not dataclasses.MISSING:
                value = getattr(method, field.name)
                assert (tuple(value) if isinstance(value, list) else value) == field.default, f"{name}.{field.name}"


@pytest.fixture
def few_texts(monkeypatch):
    """Batches of 3 and of 6 rows tell as much of a method as 4 and 16."""
    monkeypatch.setattr(reading, "SAMPLES", 2)
    monkeypatch.setattr(reading, "BATCHES", (3, 6))


@pytest.mark.usefixtures("few_texts")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", NAMES)
def test_every_promise_is_kept(name, architecture):
    if (name, architecture) in REFUSED:
        pytest.skip("it is refused")
    cfg = node(name, *SHORTER.get(name, []))
    make = functools.partial(tiny_lm, blocks=3) if architecture in TINY else lm_of
    subject = Subject(lambda: build(cfg), lambda: make(architecture), FitData(**DATA), options=list(cfg))
    results = examine(subject)
    faults = {one.check: (one.outcome, one.detail) for one in results if one.outcome != "PASS"}
    told = "\n".join(f"{check}: {outcome} {detail}" for check, (outcome, detail) in faults.items())
    assert faults == ({"grid of strengths": ("SKIP", "it has no grid")} if name == "unsteered" else {}), told
