from dataclasses import dataclass

import pytest

from bench.config.compose import compose
from bench.config.packed import Packed
from bench.records.identity import canonical, digest, fit_id, method_identity, record_id, steering_identity
from bench.run.names import Names
from bench.run.parts import parts
from methods.base import later
from methods.caa import CAA
from methods.finetune import Finetune
from methods.stack import Stack
from tests.methods.yaml_files import ALL, load

METHODS = {
    "ablation": "8517c866daae",
    "act": "1a5352e9263b",
    "act_add": "9ba436c6f7d3",
    "aura": "33940fa12a5e",
    "caa": "ed41442bbf7b",
    "detox": "cf62ceef8364",
    "dinm": "9790e36318da",
    "dpo": "51599b86fa2d",
    "dexperts": "37d339183f8e",
    "finetune": "96ac572b28dc",
    "gate": "b833ba21f03a",
    "imported": "df57eee6afd0",
    "infer_aligner": "0771558935e3",
    "instruction": "af5c683fd34b",
    "argre": "ee71ec46cc44",
    "eigenshift": "896ed5af3f79",
    "lineas": "56fb041e08d9",
    "activation_scaling": "dfdfb375886f",
    "iti": "dcae03f3f15c",
    "itic": "a3d23406ccb1",
    "kl_then_steer": "d55d6945809f",
    "lora": "3c7591708a0a",
    "mean_centring": "facc4dfed42a",
    "probe_rows": "18014c6485b0",
    "prompt": "870bf5cb0139",
    "psa": "c74d4d9ae2ca",
    "random_direction": "cbf454972574",
    "repe": "9fe0a86f3f45",
    "sadi": "fbb21ffd37d7",
    "sasa": "aa3a72e53a70",
    "security_vector": "fad35979cfb4",
    "self_debias": "b15b1809b6b5",
    "stack": "8480e4996802",
    "task_negation": "8e9063b59812",
    "unsteered": "1e26c64bccf3",
    "word_filter": "94330c1046d2",
}
"""Of every YAML with its defaults: what fits and results on disk are called by."""


def test_pinned_ids():
    """These names are on disk: if one changes, every stored result is lost. Bump SCHEMA or a version instead."""
    method = {"name": "caa", "version": 1, "parameters": {"layer": 0.45}}
    fit = fit_id({"wheel": "w"}, method, {"name": "on_policy"})
    assert fit == "8310aca39b63"
    steering = steering_identity(fit, method, 4.0)
    assert record_id({"wheel": "w"}, steering, {"name": "rtp", "k": 5}, "test") == "085e36d34aa2"


def test_pinned_ids_of_methods():
    """Made before methods had a title: neither title nor cite is a hyper-parameter."""
    assert {name: digest(method_identity(load(name))) for name in ALL} == METHODS


def test_what_does_not_change_an_id():
    assert digest({"a": 1, "b": None}) == digest({"a": 1.0})
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": [1, 2]}) == digest({"a": (1, 2)})


def test_what_changes_an_id():
    assert len({digest({"a": value}) for value in (1, 1.5, "1", True, [1], {"b": 1})}) == 6
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


def test_strength_zero_is_unsteered_for_every_method():
    assert steering_identity("x", {"name": "caa"}, 0.0) is None


def test_an_object_has_no_identity():
    with pytest.raises(TypeError, match="not a plain JSON value"):
        canonical({"a": object()})


def test_the_grid_of_strengths_is_no_part_of_a_fit():
    @dataclass(frozen=True)
    class Some:
        name = "some"
        version = 1
        layer: int = 1
        strengths: tuple[float, ...] = (1, 2)

    assert method_identity(Some()) == method_identity(Some(strengths=(3,)))
    assert method_identity(Some()) != method_identity(Some(layer=2))


def test_an_option_that_came_later_is_in_no_id_at_its_default():
    @dataclass(frozen=True)
    class Some:
        name = "some"
        version = 1
        layer: int = 1
        limit: int | None = later(1)
        later: bool = later(False)

    assert method_identity(Some())["parameters"] == {"layer": 1}
    assert method_identity(Some(later=True))["parameters"] == {"layer": 1, "later": True}
    assert method_identity(Some(limit=None))["parameters"] == {"layer": 1, "limit": "null"}


@pytest.mark.parametrize(
    ("method", "version"), [("finetune", 1), ("security_vector", 1), ("caa", None), ("stack", None)]
)
def test_only_what_trains_on_16_bits_has_another_id_there(method, version):
    for dtype, found in (("float32", None), ("bfloat16", version), ("float16", version)):
        cfg = compose([f"method={method}", "suite=rtp", f"model.dtype={dtype}"])
        assert Names(Packed(cfg), parts(cfg), 1, str).method.get("half_version") == found


@pytest.mark.parametrize(("method", "version"), [("argre", 1), ("repe", None), ("detox", None)])
def test_a_rotated_control_has_the_version_of_its_making(method, version):
    for draw, found in (("null", None), ("0", version)):
        cfg = compose([f"method={method}", "suite=rtp", f"control={draw}"])
        own = Names(Packed(cfg), parts(cfg), 1, str).method
        assert own.get("control_version") == found and ("rotation_seed" in own) == (draw == "0")


def test_the_order_of_methods_within_a_method_counts():
    one, other = {"a": CAA(), "b": Finetune()}, {"b": Finetune(), "a": CAA()}
    ids = [digest(method_identity(Stack(parts=parts, at={"a": 1, "b": 1}))) for parts in (one, other)]
    assert ids[0] != ids[1]
    found = method_identity(Stack(parts=one, at={"b": 1, "a": 1}))["parameters"]
    assert found.keys() == {"parts", "at"}  # in the order of their names: the ids of old results stay
