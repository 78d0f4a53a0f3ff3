import pytest
import torch

from bench.lm import LM
from bench.sampling import prefill
from methods import anatomy
from methods.base import FitData, Pairs
from methods.caa import CAA
from methods.errors import SetupError
from methods.intervention import record
from tests.sinks import planted_sink
from tests.tiny import tiny_lm

LAYER = 1
KEY = f"layers.{LAYER}.direction"
PAIRS = Pairs(
    ["The quick fox", "People walk", "A small bird"],
    [" jumps over", " along the river and talk", " sings"],
    [" is lazy and old", " home", " is near the old tree"],
)


def fit(method: CAA, lm: LM, pairs: Pairs = PAIRS) -> dict[str, torch.Tensor]:
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def logits(lm: LM, prompt: str, continuation: str) -> tuple[torch.Tensor, int]:
    """(T, V) logits of the whole text in one forward, and the length of the prompt."""
    head, tail = lm.encode(prompt), lm.tokenizer(continuation, add_special_tokens=False).input_ids
    ids = torch.tensor([head + tail])
    return lm.read(lm.start(torch.tensor([len(head)])), ids, torch.ones_like(ids, dtype=torch.bool))[0], len(head)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_direction_by_hand(architecture):
    lm = tiny_lm(architecture)
    differences = []
    for prompt, *continuations in zip(*PAIRS, strict=True):
        means = []
        for continuation in continuations:
            head, tail = lm.encode(prompt), lm.tokenizer(continuation, add_special_tokens=False).input_ids
            with torch.inference_mode():
                out = lm.model(torch.tensor([head + tail]), output_hidden_states=True)
            means.append(out.hidden_states[LAYER + 1][0, len(head) :].mean(0))  # output of block LAYER
        differences.append(means[0] - means[1])
    expected = torch.stack(differences).mean(0)
    artefact = fit(CAA(layer=LAYER), lm)
    torch.testing.assert_close(artefact[KEY], expected, atol=1e-4, rtol=1e-4)
    assert artefact["info.direction_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)


@pytest.mark.parametrize("read", ["all", "continuation", "last"])
def test_swapped_pairs_negate_doubled_pairs_change_nothing_and_it_is_linear_in_pairs(read):
    lm, method = tiny_lm(), CAA(layer=LAYER, read=read)
    v = fit(method, lm)[KEY]
    swapped = fit(method, lm, Pairs(PAIRS.prompt, PAIRS.undesired, PAIRS.desired))[KEY]
    torch.testing.assert_close(swapped, -v, atol=1e-5, rtol=1e-4)
    doubled = fit(method, lm, Pairs(*(column * 2 for column in PAIRS)))[KEY]
    torch.testing.assert_close(doubled, v, atol=1e-5, rtol=1e-4)
    single = [fit(method, lm, Pairs(*([column[i]] for column in PAIRS)))[KEY] for i in range(3)]
    torch.testing.assert_close(torch.stack(single).mean(0), v, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("boundary", [True, False])
def test_prompt_is_untouched_up_to_the_boundary(boundary):
    lm, method = tiny_lm(), CAA(layer=LAYER, boundary=boundary)
    base, length = logits(lm, "The old tree near", " the river sings")
    with lm.steered(method, fit(method, lm), 2) as steered:
        inside, _ = logits(steered, "The old tree near", " the river sings")
    first = length - 1 if boundary else length
    assert torch.equal(inside[:first], base[:first])
    changed = (inside[first:] - base[first:]).abs().amax(-1)
    assert (changed > 1e-3).all()


def test_the_first_new_token_feels_the_steering_only_with_the_boundary():
    lm = tiny_lm()
    ids = [lm.encode("The old tree near")]
    _, base = prefill(lm, ids)
    for boundary in (True, False):
        method = CAA(layer=LAYER, boundary=boundary)
        with lm.steered(method, fit(method, lm), 2) as steered:
            rows, last = prefill(steered, ids)
            assert torch.equal(last, base) is not boundary
            with record(lm.model, [LAYER]) as seen:  # entered inside: behind the steering hook
                steered.read(rows, torch.tensor([[40]]), torch.tensor([[True]]))
                after = seen[LAYER].clone()
        rows_base, _ = prefill(lm, ids)
        if not boundary:  # same cache so far: the decoding step itself is moved by exactly strength * v
            with record(lm.model, [LAYER]) as seen:
                lm.read(rows_base, torch.tensor([[40]]), torch.tensor([[True]]))
                torch.testing.assert_close(after - seen[LAYER], 2 * fit(method, lm)[KEY].expand_as(after))


@pytest.mark.parametrize(
    ("scope", "moved"), [("generation", [False, True, True]), ("prompt", [True, True, False]), ("all", [True] * 3)]
)
def test_scope(scope, moved):
    """Which of first prompt token, last prompt token and continuation are moved, by strength * v each."""
    lm, method = tiny_lm(), CAA(layer=LAYER, scope=scope)
    artefact = fit(method, lm)
    with record(lm.model, [LAYER]) as seen:
        _, length = logits(lm, "The old tree near", " the river sings")
        before = seen[LAYER][0]
    with lm.steered(method, artefact, -3) as steered, record(lm.model, [LAYER]) as seen:
        logits(steered, "The old tree near", " the river sings")
        after = seen[LAYER][0]
    for column, expected in zip((0, length - 1, length), moved, strict=True):
        if expected:
            assert torch.equal(after[column], before[column] + -3 * artefact[KEY])
        else:
            assert torch.equal(after[column], before[column])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_planted_direction_is_found_past_the_attention_sink(architecture):
    lm, pairs, direction, sink = planted_sink(architecture)

    def cosine(**options) -> float:
        return float(torch.cosine_similarity(fit(CAA(layer=LAYER, **options), lm, pairs)[KEY], direction, dim=0))

    assert cosine() > 0.99
    assert cosine(read="last") > 0.99
    assert cosine(read="all", skip_first=1) > 0.99
    assert cosine(read="all") < 0.6  # the sink weighs 1/T in a mean over T tokens, and texts differ in length
    leaked = fit(CAA(layer=LAYER, read="all"), lm, pairs)[KEY]
    assert abs(float(torch.cosine_similarity(leaked, sink, dim=0))) > 0.8


def test_positive_strength_moves_towards_the_desired():
    lm, pairs, _, _ = planted_sink()
    method = CAA(layer=len(anatomy.blocks(lm.model)) - 1)
    artefact = fit(method, lm, pairs)

    def log_odds(lm: LM) -> float:
        """Of a desired token against an undesired one, after a prompt."""
        _, last = prefill(lm, [lm.encode(pairs.prompt[0])])
        wanted, unwanted = (lm.tokenizer(c, add_special_tokens=False).input_ids[0] for c in "05")
        return float(last[0, wanted] - last[0, unwanted])

    # tie the unembedding to the planted embedding, so that a logit is a projection on it
    lm.model.get_output_embeddings().weight.copy_(lm.model.get_input_embeddings().weight)
    base = log_odds(lm)
    with lm.steered(method, artefact, 1) as steered:
        assert log_odds(steered) > base + 1
    with lm.steered(method, artefact, -1) as steered:
        assert log_odds(steered) < base - 1


def test_wrong_settings():
    lm = tiny_lm()
    for options, message in (
        ({"read": "first"}, "allowed are all, continuation, last"),
        ({"scope": "front"}, "allowed are generation, prompt, all"),
        ({"skip_first": -1}, "is negative"),
        ({"layer": 5}, "layer 5 out of range"),
    ):
        with pytest.raises(SetupError, match=message):
            CAA(**options).check(lm.model)
    for data in (FitData(), FitData(Pairs([], [], []))):
        with pytest.raises(SetupError, match="caa learns from contrast pairs and got none"):
            CAA().fit(lm.model, lm.tokenizer, data)
