"""Each broken method is caught by the check that is meant for it."""

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from bench.selftest import reading, steering
from bench.selftest.__main__ import DATA, checks, examine, main
from bench.selftest.subject import Failure, Subject
from methods import layout
from methods.base import Artefact, Method, Steering
from methods.errors import SetupError
from methods.intervention import Hook, adding, current_positions, edited, hooked, scope_mask
from tests.tiny import tiny_lm, tiny_model, tiny_tokenizer

NAMES = [check.name for check in checks()]
count = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Sound(Method):
    """Adds a fixed direction at the output of a block; the options are random_direction's, whose YAML it runs under."""

    name: ClassVar[str] = "sound"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "length"

    seed: int = 0
    layer: int | float = 0.45
    strengths: Sequence[float] = (1, 2, 4)

    def fit(self, model, tokenizer, data) -> Artefact:
        drawn = torch.randn(layout.width(model), generator=torch.Generator().manual_seed(self.seed))
        return {"direction": drawn, "info.norm": drawn.norm()}

    @contextlib.contextmanager
    def apply(self, model, artefact, strength) -> Iterator[Steering]:
        vector = strength * artefact["direction"]
        with hooked(
            [Hook(self.block(model), "output", lambda hidden: self.moved(hidden, vector.to(hidden)))]
            if strength
            else []
        ):
            yield Steering()

    def block(self, model):
        return layout.blocks(model)[layout.layer_index(model, self.layer)]

    def moved(self, hidden: Tensor, vector: Tensor) -> Tensor:
        return adding(vector, "generation", boundary=True)(hidden)


class HookStays(Sound):
    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        vector = strength * artefact["direction"]
        if strength:
            self.block(model).register_forward_hook(lambda module, args, output: output + vector.to(output))
        yield Steering()


class WeightsComeBackRounded(Sound):
    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        weight = self.block(model).mlp.down_proj.weight
        change = strength * artefact["direction"][:, None]
        weight.data += change
        try:
            yield Steering()
        finally:
            weight.data -= change


class NoUndoAfterAnException(Sound):
    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        weight = self.block(model).mlp.down_proj.weight
        before = weight.detach().clone()
        weight.data += strength * artefact["direction"][:, None]
        yield Steering()
        weight.data.copy_(before)


class SwallowsExceptions(Sound):
    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        with super().apply(model, artefact, strength) as steering, contextlib.suppress(Exception):
            yield steering


class OnlyOnce(Sound):
    """Uses its artefact up."""

    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        kept = artefact.pop("direction", None)
        with super().apply(model, {"direction": kept}, strength) if kept is not None else contextlib.nullcontext():
            yield Steering()


class NotTheBaseAtZero(Sound):
    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        with super().apply(model, artefact, strength or 1e-3) as steering:
            yield steering


class HookAtZero(Sound):
    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        vector = strength * artefact["direction"]
        with hooked([Hook(self.block(model), "output", lambda hidden: self.moved(hidden, vector.to(hidden)))]):
            yield Steering()


class PrefixAtZero(Sound):
    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        with super().apply(model, artefact, strength):
            yield Steering(prefix="Well, ")


class FirstColumnsOfTheBatch(Sound):
    """Takes padding for text."""

    def moved(self, hidden, vector):
        acts = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        acts[:, :3] = hidden.shape[1] > 1
        return torch.where(acts[..., None], hidden + vector, hidden)


class PoolsThePadding(Sound):
    def moved(self, hidden, vector):
        return (
            hidden + vector * hidden.mean(1, keepdim=True).norm(dim=-1, keepdim=True) if hidden.shape[1] > 1 else hidden
        )


class OnlyWithoutCache(Sound):
    def moved(self, hidden, vector):
        return hidden + vector if hidden.shape[1] > 1 else hidden


class OnlyWithCache(Sound):
    def moved(self, hidden, vector):
        return hidden + vector if hidden.shape[1] == 1 else hidden


class ForgetsWhatIsCached(Sound):
    """Counts positions from the beginning of each forward."""

    def moved(self, hidden, vector):
        positions = current_positions()
        index = positions._replace(cached=torch.zeros_like(positions.cached)).in_text(hidden.shape[1])
        return torch.where((index >= positions.prompt[:, None])[..., None], hidden + vector, hidden)


class LastColumnOnly(Sound):
    """On the right it takes padding for the end of a text."""

    def moved(self, hidden, vector):
        last = torch.arange(hidden.shape[1]) == hidden.shape[1] - 1
        return torch.where(last[None, :, None], hidden + vector, hidden)


class Remembers(Sound):
    """What it adds depends on how often it was called."""

    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        calls = itertools.count()

        def moved(hidden):
            return hidden + strength * (1 + next(calls) // 14) * artefact["direction"].to(hidden)

        with hooked([Hook(self.block(model), "output", moved)] if strength else []):
            yield Steering()


class DrawsFromTheSharedGenerator(Sound):
    def fit(self, model, tokenizer, data):
        return {"direction": torch.randn(layout.width(model))}


class NeverTheSame(Sound):
    def fit(self, model, tokenizer, data):
        return {"direction": torch.full([layout.width(model)], 1.0 + next(count))}


class SeedsEverybody(Sound):
    def fit(self, model, tokenizer, data):
        torch.manual_seed(self.seed)
        return {"direction": torch.randn(layout.width(model))}


class DrawsWhileSteering(Sound):
    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        torch.rand(1)
        with super().apply(model, artefact, strength) as steering:
            yield steering


class NotFinite(Sound):
    def fit(self, model, tokenizer, data):
        return super().fit(model, tokenizer, data) | {"info.ratio": torch.tensor([1.0, float("nan")])}


class MadeInInferenceMode(Sound):
    @torch.inference_mode()
    def fit(self, model, tokenizer, data):
        return super().fit(model, tokenizer, data)


class NotContiguous(Sound):
    def fit(self, model, tokenizer, data):
        return super().fit(model, tokenizer, data) | {"basis": torch.ones(3, 2).T}


class DoesNothing(Sound):
    def moved(self, hidden, vector):
        return hidden.clone()


class IgnoresItsStrength(Sound):
    def moved(self, hidden, vector):
        return hidden + vector / vector.norm()


class FitLeavesATrace(Sound):
    def fit(self, model, tokenizer, data):
        model.model.norm.weight.data[3] += 1e-6
        return super().fit(model, tokenizer, data)


class FitLeavesTrainingModeOn(Sound):
    def fit(self, model, tokenizer, data):
        model.train()
        return super().fit(model, tokenizer, data)


class NeedsItsFacts(Sound):
    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        with super().apply(model, artefact, strength * float(artefact["info.norm"])) as steering:
            yield steering


@dataclass(frozen=True, kw_only=True)
class LearnsIntoItself(Sound):
    kept: dict = field(default_factory=dict, init=False)

    def fit(self, model, tokenizer, data):
        self.kept.update(super().fit(model, tokenizer, data))
        return {}

    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        with super().apply(model, self.kept or {"direction": torch.ones(layout.width(model))}, strength) as steering:
            yield steering


class Float32Only(Sound):
    def moved(self, hidden, vector):
        return hidden.float() + vector


class MakesTheModelFloat32(Sound):
    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        model.float()
        with super().apply(model, artefact, strength) as steering:
            yield steering


class FitFails(Sound):
    def fit(self, model, tokenizer, data):
        raise ValueError("no such thing")


class CheckFails(Sound):
    def check(self, model):
        raise TypeError("no such thing")


class UnknownNeeds(Sound):
    needs: ClassVar[frozenset[str]] = frozenset({"pictures"})


@dataclass(kw_only=True, unsafe_hash=True)
class NotFrozen:
    name: ClassVar[str] = "not_frozen"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "length"
    seed: int = 0
    layer: float = 0.45
    strengths: Sequence[float] = (1, 2, 4)
    passes, check, fit, apply = Sound.passes, Sound.check, Sound.fit, Sound.apply
    block, moved = Sound.block, Sound.moved


@dataclass(frozen=True, kw_only=True)
class AnOptionThatTheYamlLacks(Sound):
    boundary: bool = True


@dataclass(frozen=True, kw_only=True)
class SomethingToMend(Sound):
    def check(self, model):
        raise SetupError("method.layer=99 is no block of this model")


@dataclass(frozen=True, kw_only=True)
class FewerOptionsThanTheYaml(Sound):
    layer: float = field(default=0.45, init=False)


@dataclass(frozen=True, kw_only=True)
class CannotBeMade(Sound):
    def __post_init__(self):
        raise ValueError("seeds are even")


class Interrupted(Sound):
    def fit(self, model, tokenizer, data):
        raise KeyboardInterrupt


class ScalesItsArtefact(Sound):
    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        with super().apply(model, {"direction": artefact["direction"].mul_(strength or 1)}, 1 if strength else 0):
            yield Steering()


PADDING, CACHE, WHERE = {"left padding", "right padding"}, "cached = uncached", "where it acts"
BROKEN = {
    NotFrozen: {"protocol"},
    UnknownNeeds: {"protocol", "fit leaves no trace", "bfloat16"},
    CheckFails: {"suits the model"},
    FitFails: {"fit leaves no trace", "bfloat16"},
    FitLeavesATrace: {"fit leaves no trace"},
    FitLeavesTrainingModeOn: {"fit leaves no trace", "bfloat16"},
    NotFinite: {"artefact", "save and load"},
    MadeInInferenceMode: {"artefact"},
    NotContiguous: {"artefact"},
    DrawsFromTheSharedGenerator: {"fit again", "shared generators"},
    NeverTheSame: {"fit again"},
    SeedsEverybody: {"shared generators"},
    DrawsWhileSteering: {"shared generators"},
    HookStays: {"undo", "save and load", "bfloat16"},
    WeightsComeBackRounded: {"undo", "bfloat16"},
    NoUndoAfterAnException: {"undo"},
    SwallowsExceptions: {"undo"},
    ScalesItsArtefact: {"undo"},
    OnlyOnce: {"effect", "grid of strengths"},
    NotTheBaseAtZero: {"strength 0"},
    HookAtZero: {"strength 0"},
    PrefixAtZero: {"strength 0"},
    DoesNothing: {"effect", "grid of strengths"},
    IgnoresItsStrength: {"grid of strengths"},
    FirstColumnsOfTheBatch: {WHERE, "left padding", "batch size"},
    PoolsThePadding: {WHERE, CACHE} | PADDING,
    OnlyWithoutCache: {WHERE, CACHE},
    OnlyWithCache: {WHERE, CACHE, "effect", "grid of strengths"},
    ForgetsWhatIsCached: {WHERE, CACHE},
    LastColumnOnly: {WHERE, CACHE, "right padding"},
    Remembers: {"order of prompts", CACHE, "left padding", "batch size"},
    NeedsItsFacts: {"save and load"},
    LearnsIntoItself: {"save and load"},
    Float32Only: {"bfloat16"},
    MakesTheModelFloat32: {"bfloat16"},
}


def two_blocks():
    """Return a tiny model of two blocks in place of three or more, which makes these tests faster."""
    lm = tiny_lm()
    lm.model.model.layers = lm.model.model.layers[:2]
    lm.model.config.num_hidden_layers = 2
    return lm


@pytest.mark.every(6)
@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_method_fails_where_it_is_broken(kind):
    """And nowhere else: the model is whole again for the next check."""
    results = examine(Subject(make=kind, load=two_blocks, data=DATA))
    assert [one.check for one in results] == NAMES
    assert {one.check for one in results if one.outcome == "FAIL"} == BROKEN[kind], results
    skipped = {one.check for one in results if one.outcome == "SKIP"}
    assert skipped == ({"YAML"} if kind not in (FitFails, UnknownNeeds) else {"YAML", *NAMES[4:18]})


def test_every_check_can_fail():
    assert set().union(*BROKEN.values()) | {"YAML"} == set(NAMES)


def test_the_reason_has_numbers_and_the_place():
    found = {one.check: one.detail for one in examine(Subject(make=FirstColumnsOfTheBatch, load=tiny_lm, data=DATA))}
    assert "changes the first 3 of 22 prompt tokens and no new token; beside a longer text" in found[WHERE]
    assert "logits differ by 0." in found["left padding"] and "rounding explains 0.00049" in found["left padding"]
    found = {one.check: one.detail for one in examine(Subject(make=FitFails, load=tiny_lm, data=DATA))}
    assert re.fullmatch(r"ValueError: no such thing \(test_selftest.py:\d+\)", found["fit leaves no trace"])
    assert found["undo"] == "there is no artefact: the fit failed"


# -- where a method acts ------------------------------------------------------------------------------------------


def acted(method: Method, **settings) -> str:
    subject = Subject(make=lambda: method, load=tiny_lm, data=DATA, **settings)
    return steering.where(subject)


class TwoHooks(Sound):
    """At the input of one block and in the MLP of another; the second acts on the first two prompt tokens."""

    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        vector, modules = strength * artefact["direction"], layout.blocks(model)

        def front(hidden):
            acts = scope_mask("front", hidden.shape[1], front=2)
            return torch.where(acts[..., None], hidden + vector.to(hidden), hidden)

        hooks = [Hook(modules[0], "input", lambda hidden: hidden + vector), Hook(modules[3].mlp, "output", front)]
        with hooked(hooks):
            yield Steering()


def test_where_it_acts_is_told_by_hook_token_and_pass():
    steps = "fired 5 times in 5 passes"
    last = "the last of 22 prompt tokens and all 4 new tokens"
    assert acted(Sound()) == f"output of model.layers.2: {last}, {steps}"
    assert acted(TwoHooks()) == (
        f"input of model.layers.0: all 22 prompt tokens and all 4 new tokens, {steps}; "
        f"output of model.layers.3.mlp: the first 2 of 22 prompt tokens and no new token, {steps}"
    )


class EditsTwoWeights(Sound):
    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        new = {block.mlp.down_proj.weight: block.mlp.down_proj.weight * 2 for block in layout.blocks(model)[1:3]}
        with edited(new):
            yield Steering(prefix="Well, ")


def test_what_it_does_without_hooks():
    assert acted(EditsTwoWeights()) == "2 of 48 weights edited; a prefix of 6 tokens; no hooks"


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder.parent / "conf" / "method").mkdir(parents=True)
    kinds = (Sound, NotTheBaseAtZero, AnOptionThatTheYamlLacks, CannotBeMade, FewerOptionsThanTheYaml, SomethingToMend)
    for name in ("tests.nowhere.Mine", *(f"{kind.__module__}.{kind.__name__}" for kind in (*kinds, Interrupted))):
        (folder.parent / "conf" / "method" / f"{name}.yaml").write_text(f"_target_: {name}\n")  # else none is built
    return folder


def command(folder, *more: str) -> list[str]:
    method = [] if any(one.startswith("method=") for one in more) else ["method=random_direction"]
    listed = f"hydra.searchpath=['{folder.parent / 'conf'}']"
    return [*method, "model=local", f"model.path={folder}", "model.bos=prepend", listed, *more]


def target(kind: type) -> str:
    return f"method._target_={kind.__module__}.{kind.__name__}"


def test_a_sound_method_ends_with_0(folder, capsys):
    assert main(command(folder, target(Sound))) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out and "SKIP" not in out and out.count("PASS") == len(NAMES)
    assert f"sound at strength 0.4 on local: {len(NAMES)} passed, 0 failed, 0 skipped" in out


def test_a_broken_one_ends_with_1(folder, capsys):
    assert main(command(folder, target(NotTheBaseAtZero), "strength=2")) == 1
    out = capsys.readouterr().out
    assert re.search(r"strength 0 +FAIL +logits differ by 0\.\d+ of their spread", out)
    assert f"sound at strength 2 on local: {len(NAMES) - 1} passed, 1 failed" in out


@pytest.mark.parametrize(
    ("arguments", "check", "reason"),
    [
        ([target(AnOptionThatTheYamlLacks)], "YAML", "not in the YAML: boundary; only in the YAML: none"),
        ([target(CannotBeMade)], "YAML", r"ValueError: seeds are even \(test_selftest.py:\d+\)"),
        ([target(Sound), "method.strengths=[0,1]"], "protocol", r"strengths=\[0, 1\]: expected distinct numbers"),
    ],
)
def test_a_yaml_that_does_not_fit_ends_with_1(folder, capsys, arguments, check, reason):
    assert main(command(folder, *arguments)) == 1
    assert re.search(f"{check} +FAIL +.*{reason}", " ".join(capsys.readouterr().out.split()))


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.lair=3"], "did you mean method.layer?"),
        (["method=random_direktion"], "did you mean random_direction?"),
        (["-m"], "leave out -m"),
        (["method=caa,detox"], "this names 2 cells"),
        (["strength=0"], "strength=0 is the unsteered model"),
        (["model.path=nowhere"], "no config.json there"),
        (["method.layer=99"], "layer 99 out of range"),
        ([target(FewerOptionsThanTheYaml)], "unknown key method.layer"),
        (["method._target_=tests.nowhere.Mine"], "tests.nowhere.Mine cannot be imported"),
        ([target(SomethingToMend)], "method.layer=99 is no block of this model"),
        (["method=detox", "method.rank=30"], "method.rank=30 needs at least as many pairs and got 16"),
    ],
)
def test_what_the_user_must_mend_ends_with_2(folder, capsys, arguments, message):
    assert main(command(folder, *arguments)) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and not captured.out


def test_ctrl_c_ends_with_130(folder, capsys):
    assert main(command(folder, target(Interrupted))) == 130
    assert "stopped" in capsys.readouterr().err


def test_help_names_every_check(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES) and "strength=NUMBER" in out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_texts_that_flip_between_batch_sizes_are_counted(dtype, monkeypatch):
    lm = tiny_lm()
    lm.model.to(dtype)
    subject = SimpleNamespace(steered=lambda: contextlib.nullcontext(lm))
    told = reading.batch_size(subject)
    assert re.fullmatch(rf"\d+ of \d+ texts differ between batches of 4 and 16 rows in {str(dtype)[6:]}", told)
    other = {4: "a", 16: "b"}
    monkeypatch.setattr(reading, "sample", lambda lm, prompts, k, new, batch_size: [[other[batch_size]] * k])
    if dtype == torch.bfloat16:
        assert reading.batch_size(subject).startswith("8 of 8 texts differ")
    else:
        with pytest.raises(Failure, match="8 of 8 texts differ .* one of a thousand"):
            reading.batch_size(subject)
