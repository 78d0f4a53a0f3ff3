import re

import pytest
import torch

from bench.model.lm import LM
from bench.model.sampling import prefill
from methods import layout
from methods.base import FitData, Pairs, facts
from methods.caa import CAA, matched_norms
from methods.errors import SetupError
from methods.intervention import record
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
QUESTION = "Input: Do we walk along the {}?\n (A) the water\n (B) the road\nResponse:"
LETTERS = Pairs(
    [QUESTION.format(word) for word in ("river", "old tree", "long road home", "water near the tree")],
    [" (A)", " (B)", " (B)", " (A)"],
    [" (B)", " (A)", " (A)", " (B)"],
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


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_letter_reads_the_last_token_but_one_by_hand(architecture):
    lm = tiny_lm(architecture)
    differences = []
    for prompt, *answers in zip(*LETTERS, strict=True):
        rows = []
        for answer in answers:
            ids = lm.encode(prompt) + lm.tokenizer(answer, add_special_tokens=False).input_ids
            assert lm.tokenizer.decode([ids[-2]]) == answer[2] and lm.tokenizer.decode([ids[-1]]) == ")"
            with torch.inference_mode():
                out = lm.model(torch.tensor([ids]), output_hidden_states=True)
            rows.append(out.hidden_states[LAYER + 1][0, -2])
        differences.append(rows[0] - rows[1])
    expected = torch.stack(differences).mean(0)
    artefact = fit(CAA(layer=LAYER, read="letter"), lm, LETTERS)
    torch.testing.assert_close(artefact[KEY], expected, atol=1e-4, rtol=1e-4)
    skipping = fit(CAA(layer=LAYER, read="letter", skip_first=500), lm, LETTERS)  # one position, whatever is skipped
    assert torch.equal(skipping[KEY], artefact[KEY])


@pytest.mark.parametrize("column", ["desired", "undesired"])
@pytest.mark.parametrize(
    ("wrong", "named", "found"),
    [
        (" (A) ", "A", ")"),
        (" A", "B", " "),
        (" (A", "B", "("),
        (" A)", "B", "A"),  # a letter, but of no "(X)"
        (" (a)", "B", "a"),
        (" fox", "B", "fo"),
        ("", "B", "e"),
    ],
)
def test_letter_checks_every_text(wrong, named, found, column):
    lm, method = tiny_lm(), CAA(layer=LAYER, read="letter")
    broken = LETTERS._replace(**{column: [*getattr(LETTERS, column)[:-1], wrong]})
    wanted = (
        rf"{re.escape(wrong[-3:])}' should be the letter of its last \"\({named}\)\"; it is '{re.escape(found)}' \(the"
    )
    with pytest.raises(SetupError, match=wanted + ".*Give the prompts another format"):
        fit(method, lm, broken)


@pytest.mark.parametrize("answer", [" (AB)", " foxo)"])
def test_letter_wants_a_letter_to_be_named(answer):
    lm, method = tiny_lm(), CAA(layer=LAYER, read="letter")
    with pytest.raises(SetupError, match="should be an answer letter, but it names none"):
        fit(method, lm, Pairs(["The fox"] * 2, [answer] * 2, [" (B)"] * 2))


def test_the_letter_of_a_long_text_is_never_cut_off():
    lm, method = tiny_lm(), CAA(layer=LAYER, read="letter")
    lm.model.config.max_position_embeddings = 700
    long = Pairs(["The old tree. " * 60 + LETTERS.prompt[0]] * 2, [" (A)"] * 2, [" (B)"] * 2)
    size = len(lm.encode(long.prompt[0] + " (A)"))
    assert size < 700
    ids = lm.encode(long.prompt[0])
    rows = []
    for answer in (" (A)", " (B)"):
        with torch.inference_mode():
            text = torch.tensor([ids + lm.tokenizer(answer, add_special_tokens=False).input_ids])
            rows.append(lm.model(text, output_hidden_states=True).hidden_states[LAYER + 1][0, -2])
    whole = fit(method, lm, long)
    torch.testing.assert_close(whole[KEY], rows[0] - rows[1], atol=1e-3, rtol=1e-3)
    assert whole["info.cut_pairs"] == 0
    lm.model.config.max_position_embeddings = size - 1
    cut = fit(method, lm, long)
    assert cut["info.cut_pairs"] == 2 and not torch.equal(cut[KEY], whole[KEY])


def test_a_planted_letter_is_found_only_where_the_paper_reads():
    """ "A" and "B" carry the planted direction; ")", the question and BOS do not."""
    lm, _, direction, _ = planted_sink()
    embedding = lm.model.get_input_embeddings().weight
    for letter, sign in (("A", 1), ("B", -1)):
        embedding[lm.tokenizer(letter, add_special_tokens=False).input_ids[0]] += sign * direction
    pairs = Pairs(LETTERS.prompt, [" (A)"] * 4, [" (B)"] * 4)
    v = fit(CAA(layer=LAYER, read="letter"), lm, pairs)[KEY]
    assert torch.cosine_similarity(v, direction, dim=0) > 0.99 and float(v @ direction) == pytest.approx(2, abs=0.2)
    behind = fit(CAA(layer=LAYER, read="last"), lm, pairs)[KEY]  # ")" feels the letter through attention alone
    assert behind.norm() < 0.1


@pytest.mark.parametrize("norm", [None, 0.5, 7])
def test_norm_rescales_the_vector_and_records_its_length(norm):
    lm = tiny_lm()
    plain, artefact = fit(CAA(layer=LAYER), lm), fit(CAA(layer=LAYER, norm=norm), lm)
    own = float(plain[KEY].norm())
    assert float(artefact["info.direction_norm"]) == pytest.approx(own)
    assert float(artefact[KEY].norm()) == pytest.approx(own if norm is None else norm, rel=1e-5)
    assert torch.cosine_similarity(artefact[KEY], plain[KEY], dim=0) > 0.99999
    if norm is None:
        assert torch.equal(artefact[KEY], plain[KEY])


def test_matched_norms_by_hand():
    vectors = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, -1.0]), "c": torch.tensor([3.0, 0.0])}
    matched = matched_norms(vectors)  # mean of 5, 1 and 3
    expected = {"a": [1.8, 2.4], "b": [0.0, -3.0], "c": [3.0, 0.0]}
    assert matched.keys() == vectors.keys()
    for behaviour, values in expected.items():
        torch.testing.assert_close(matched[behaviour], torch.tensor(values))
    alone = matched_norms({"a": vectors["a"]})
    torch.testing.assert_close(alone["a"], vectors["a"])
    for wrong, message in (({}, "no vector"), ({**vectors, "d": torch.zeros(2)}, "d of length 0")):
        with pytest.raises(SetupError, match=message):
            matched_norms(wrong)


def test_features_that_do_not_differ_are_an_error():
    lm = tiny_lm()
    same = Pairs(PAIRS.prompt, PAIRS.desired, PAIRS.desired)
    cancelling = Pairs([PAIRS.prompt[0]] * 2, [PAIRS.desired[0], PAIRS.undesired[0]],
                       [PAIRS.undesired[0], PAIRS.desired[0]])  # fmt: skip
    for pairs in (same, cancelling):
        for read in ("all", "continuation", "last"):
            with pytest.raises(SetupError, match=f"block {LAYER} have the same mean .*where method.read={read} looks"):
                fit(CAA(layer=LAYER, read=read), lm, pairs)
    with pytest.raises(SetupError, match="have the same mean"):
        fit(CAA(layer=LAYER, read="letter"), lm, LETTERS._replace(undesired=LETTERS.desired))


def test_an_artefact_of_another_model_or_layer():
    lm, other = tiny_lm("llama"), tiny_lm("gpt2")
    artefact = fit(CAA(layer=LAYER), lm)
    with pytest.raises(SetupError, match=r"direction \(36,\) was not fitted on this model, whose width is 28"):
        with CAA(layer=LAYER).apply(other.model, artefact, 1):
            pass
    with pytest.raises(SetupError, match=r"without layers\.2\.direction was not fitted on this model at this layer"):
        with CAA(layer=2).apply(lm.model, artefact, 1):
            pass


def test_strength_zero_and_the_way_out_leave_every_bit():
    lm, method = tiny_lm(), CAA(layer=LAYER)
    artefact = fit(method, lm)
    base, _ = logits(lm, "The old tree near", " the river sings")
    with method.apply(lm.model, artefact, 0):
        assert torch.equal(logits(lm, "The old tree near", " the river sings")[0], base)
    with method.apply(lm.model, artefact, 2):
        assert not torch.equal(logits(lm, "The old tree near", " the river sings")[0], base)
    assert torch.equal(logits(lm, "The old tree near", " the river sings")[0], base)


@pytest.mark.parametrize("read", ["all", "continuation", "last", "letter"])
def test_swapped_pairs_negate_and_doubled_pairs_change_nothing(read):
    lm, method = tiny_lm(), CAA(layer=LAYER, read=read)
    pairs = LETTERS if read == "letter" else PAIRS
    v = fit(method, lm, pairs)[KEY]
    swapped = fit(method, lm, Pairs(pairs.prompt, pairs.undesired, pairs.desired))[KEY]
    torch.testing.assert_close(swapped, -v, atol=1e-5, rtol=1e-4)
    doubled = fit(method, lm, Pairs(*(column * 2 for column in pairs)))[KEY]
    torch.testing.assert_close(doubled, v, atol=1e-5, rtol=1e-4)
    rest = [Pairs(*(column[:i] + column[i + 1 :] for column in pairs)) for i in range(len(pairs.prompt))]
    without = torch.stack([fit(method, lm, some)[KEY] for some in rest])  # each pair is left out once
    assert (without - v).abs().max() > 1e-3
    torch.testing.assert_close(without.mean(0), v, atol=1e-5, rtol=1e-4)


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


def test_only_the_boundary_steers_the_first_new_token():
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
    method = CAA(layer=len(layout.blocks(lm.model)) - 1)
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
        ({"read": "first"}, "allowed are all, continuation, last, letter"),
        ({"scope": "front"}, "allowed are generation, prompt, all"),
        ({"skip_first": -1}, "is negative"),
        ({"norm": 0}, "method.norm=0: expected a length above 0"),
        ({"norm": float("nan")}, "method.norm=nan: expected a number"),
        ({"layer": 5}, "layer 5 out of range"),
    ):
        with pytest.raises(SetupError, match=message):
            CAA(**options).check(lm.model)
    one = Pairs(*(column[:1] for column in PAIRS))
    for pairs, count in ((None, "none"), (Pairs([], [], []), "none"), (one, "1")):
        with pytest.raises(SetupError, match=f"caa learns from contrast pairs and got {count}; give at least 2"):
            CAA().fit(lm.model, lm.tokenizer, FitData(pairs))


@pytest.mark.parametrize("norm", [None, 0.5])
def test_the_strength_in_lengths_of_the_stream_by_hand(norm):
    """Over the mean length, in the desired texts, of the block's output at the continuation."""
    lm, method = tiny_lm(), CAA(layer=LAYER, norm=norm)
    artefact = fit(method, lm)
    length = mean_length_by_hand(lm, PAIRS.prompt, PAIRS.desired, LAYER)
    assert length != pytest.approx(mean_length_by_hand(lm, PAIRS.prompt, PAIRS.undesired, LAYER), rel=1e-2)
    assert float(artefact["info.residual_norm"]) == pytest.approx(length, rel=1e-5)
    assert method.residual_norms(facts(artefact)) == pytest.approx(float(artefact[KEY].norm()) / length, rel=1e-5)
