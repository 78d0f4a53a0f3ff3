import pytest
import torch
from torch import Tensor

from bench.model.lm import LM
from bench.model.sampling import prefill
from methods import directions, layout
from methods.base import FitData, Pairs, facts
from methods.errors import SetupError
from methods.intervention import Hook, hooked, record
from methods.mean_centring import MeanCentring
from methods.tokens import split
from tests.sinks import planted_sink
from tests.tiny import tiny_lm
from tests.vectors import mean_length_by_hand

LAYER = 1
KEY = f"layers.{LAYER}.direction"
PAIRS = Pairs(
    ["The quick fox", "People walk", "A small bird"],
    [" jumps over", " along the river and talk", " sings"],
    [" is lazy and old", " home", " is near the old tree"],
)
BACKGROUND = ["The weather near the river", "Bread and work", "People talk about the long road home", "A lazy dog"]


def fit(method: MeanCentring, lm: LM, pairs: Pairs = PAIRS, background: list[str] = BACKGROUND) -> dict[str, Tensor]:
    return method.fit(lm.model, lm.tokenizer, FitData(pairs=pairs, background=background))


def by_hand(lm: LM, ids: list[int], start: int) -> Tensor:
    """(D,) mean of the output of block LAYER from token `start` on, one text at a time."""
    with torch.inference_mode():
        return lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0, start:].mean(0)


@pytest.mark.parametrize("skip_first", [0, 2])
@pytest.mark.parametrize("read", ["all", "continuation", "last"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_direction_by_hand(architecture, read, skip_first):
    lm = tiny_lm(architecture)
    targets = []
    for prompt, desired in zip(PAIRS.prompt, PAIRS.desired, strict=True):
        head, tail = lm.encode(prompt), lm.tokenizer(desired, add_special_tokens=False).input_ids
        start = {"all": skip_first, "continuation": len(head), "last": len(head + tail) - 1}[read]
        targets.append(by_hand(lm, head + tail, start))
    ordinary = [by_hand(lm, lm.encode(text), skip_first) for text in BACKGROUND]  # always all tokens
    means = torch.stack(targets).mean(0), torch.stack(ordinary).mean(0)
    expected = means[0] - means[1]
    artefact = fit(MeanCentring(layer=LAYER, read=read, skip_first=skip_first), lm)
    torch.testing.assert_close(artefact[KEY], expected, atol=1e-4, rtol=1e-4)
    for fact, vector in (("direction", expected), ("target", means[0]), ("background", means[1])):
        assert artefact[f"info.{fact}_norm"] == pytest.approx(float(vector.norm()), rel=1e-4)


def test_undesired_and_repeated_texts_change_nothing():
    lm, method = tiny_lm(), MeanCentring(layer=LAYER)
    v = fit(method, lm)[KEY]
    assert torch.equal(fit(method, lm, PAIRS._replace(undesired=[" hate"] * 3))[KEY], v)
    doubled = fit(method, lm, Pairs(*(column * 2 for column in PAIRS)), BACKGROUND * 3)[KEY]
    torch.testing.assert_close(doubled, v, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bos", ["none", "prepend"])
def test_target_equal_to_background_is_an_error(bos):
    lm = tiny_lm(bos=bos)
    texts = ["The quick fox jumps", "People walk along the river", "Bread"]
    same = Pairs([""] * 3, texts, [" hate"] * 3)
    for background in (texts, texts[::-1], texts * 2):
        with pytest.raises(SetupError, match=f"the same mean at block {LAYER} .*other than the desired ones"):
            fit(MeanCentring(layer=LAYER), lm, same, background)
    assert fit(MeanCentring(layer=LAYER), lm, same, texts[:2])[KEY].norm() > 1e-3


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_an_offset_of_all_activations_cancels(size):
    lm, method = tiny_lm(), MeanCentring(layer=LAYER)
    offset = size * torch.randn(layout.width(lm.model), generator=torch.Generator().manual_seed(5))  # (D,)

    def both() -> tuple[Tensor, Tensor]:
        """The centred mean, and the mean of the target texts alone."""
        texts = split(lm.tokenizer, PAIRS.prompt, PAIRS.desired)
        alone = directions.pooled_features(lm.model, texts, [LAYER], read="all")[0].mean(0)
        return fit(method, lm)[KEY], alone

    v, uncentred = both()
    with hooked([Hook(layout.blocks(lm.model)[LAYER], "output", lambda hidden: hidden + offset)]):
        v_moved, uncentred_moved = both()
    torch.testing.assert_close(v_moved, v, atol=1e-5 * size + 1e-5, rtol=1e-4)
    torch.testing.assert_close(uncentred_moved - uncentred, offset, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_planted_direction_is_found_and_the_sink_left_out(architecture):
    lm, pairs, direction, sink = planted_sink(architecture)
    background = [f"{prompt}, the long road home" for prompt in dict.fromkeys(pairs.prompt)]

    def found(**options) -> Tensor:
        return fit(MeanCentring(layer=LAYER, **options), lm, pairs, background)[KEY]

    for options in ({"read": "continuation", "skip_first": 1}, {"read": "last", "skip_first": 1}, {"skip_first": 1}):
        assert torch.cosine_similarity(found(**options), direction, dim=0) > 0.97, options
    leaked = found()  # the paper's: the sink weighs more in the shorter texts' mean
    assert abs(float(torch.cosine_similarity(leaked, sink, dim=0))) > 0.8


def test_normalise_gives_unit_length_in_the_same_direction():
    lm = tiny_lm()
    plain, unit = fit(MeanCentring(layer=LAYER), lm), fit(MeanCentring(layer=LAYER, normalise=True), lm)
    torch.testing.assert_close(unit[KEY], plain[KEY] / plain[KEY].norm())
    assert float(unit[KEY].norm()) == pytest.approx(1, rel=1e-5) and plain[KEY].norm() > 1.05
    assert torch.equal(unit["info.direction_norm"], plain["info.direction_norm"])


def test_each_cached_step_adds_at_its_final_token_once():
    """The paper's rule, step by step: of each forward the last column moves by strength * v, and no other."""
    lm, method = tiny_lm(), MeanCentring(layer=LAYER)
    artefact = fit(method, lm)

    def stream(added: LM) -> list[Tensor]:
        seen = []
        with record(lm.model, [LAYER]) as now:  # entered inside: behind the steering hook
            rows, _ = prefill(added, [added.encode("The old tree near")])
            seen.append(now[LAYER][0])
            for token in (40, 41):
                added.read(rows, torch.tensor([[token]]), torch.tensor([[True]]))
                seen.append(now[LAYER][0])
        return seen

    base = stream(lm)
    with lm.steered(method, artefact, 2) as steered:
        moved = stream(steered)
    assert torch.equal(moved[0][:-1], base[0][:-1])
    for before, after in zip(base, moved, strict=True):  # blocks up to LAYER never see an earlier addition
        torch.testing.assert_close(after[-1] - before[-1], 2 * artefact[KEY], atol=1e-4, rtol=1e-4)
    with lm.steered(MeanCentring(layer=LAYER, boundary=False), artefact, 2) as steered:
        later = stream(steered)
    assert torch.equal(later[0], base[0]) and not torch.equal(later[1], base[1])


def test_strength_zero_and_the_way_out_leave_every_bit():
    lm, method = tiny_lm(), MeanCentring(layer=LAYER)
    artefact, ids = fit(method, lm), [lm.encode("The old tree near")]
    base = prefill(lm, ids)[1]
    with method.apply(lm.model, artefact, 0):
        assert torch.equal(prefill(lm, ids)[1], base)
    with method.apply(lm.model, artefact, 2):
        assert not torch.equal(prefill(lm, ids)[1], base)
    assert torch.equal(prefill(lm, ids)[1], base)


def test_max_tokens_cuts_target_and_background():
    lm = tiny_lm()
    artefact = fit(MeanCentring(layer=LAYER, max_tokens=3), lm)
    cut = artefact[KEY]
    tails = [lm.tokenizer(text, add_special_tokens=False).input_ids for text in PAIRS.desired]
    assert min(map(len, tails)) > 1  # so the prompt is gone but for BOS
    ids = [[*lm.encode(""), *tail[:2]] for tail in tails] + [lm.encode(text)[:3] for text in BACKGROUND]
    assert artefact["info.cut_pairs"] == 3 and artefact["info.cut_background"] == len(BACKGROUND)
    means = torch.stack([by_hand(lm, one, 0) for one in ids])
    torch.testing.assert_close(cut, means[:3].mean(0) - means[3:].mean(0), atol=1e-4, rtol=1e-4)


def test_wrong_settings_and_missing_data():
    lm = tiny_lm()
    for options, message in (
        ({"read": "letter"}, "allowed are all, continuation, last"),
        ({"scope": "front"}, "allowed are generation, prompt, all"),
        ({"skip_first": -1}, "is negative"),
        ({"max_tokens": 0}, "at least 1 token"),
        ({"layer": 5}, "layer 5 out of range"),
    ):
        with pytest.raises(SetupError, match=message):
            MeanCentring(**options).check(lm.model)
    for data, message in (
        (FitData(background=BACKGROUND), "mean_centring learns from contrast pairs and got none"),
        (FitData(pairs=PAIRS), "mean of ordinary texts .* set background=wiki"),
        (FitData(pairs=PAIRS, background=[]), "mean of ordinary texts .* set background=wiki"),
    ):
        with pytest.raises(SetupError, match=message):
            MeanCentring().fit(lm.model, lm.tokenizer, data)


def test_an_artefact_of_another_model_or_layer():
    lm, other = tiny_lm("llama"), tiny_lm("gpt2")
    artefact = fit(MeanCentring(layer=LAYER), lm)
    with pytest.raises(SetupError, match=r"direction \(36,\) was not fitted on this model, whose width is 28"):
        with MeanCentring(layer=LAYER).apply(other.model, artefact, 1):
            pass
    with pytest.raises(SetupError, match=r"without layers\.2\.direction was not fitted on this model at this layer"):
        with MeanCentring(layer=2).apply(lm.model, artefact, 1):
            pass


@pytest.mark.parametrize("normalise", [False, True])
def test_the_strength_in_lengths_of_the_stream_by_hand(normalise):
    lm, method = tiny_lm(), MeanCentring(layer=LAYER, normalise=normalise)
    artefact = fit(method, lm)
    length = mean_length_by_hand(lm, PAIRS.prompt, PAIRS.desired, LAYER)
    assert method.residual_norms(facts(artefact)) == pytest.approx(float(artefact[KEY].norm()) / length, rel=1e-5)
