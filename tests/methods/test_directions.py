import pytest
import torch

from methods import directions, layout, sites
from methods.directions import mean_difference, mean_norm, pooled_features
from methods.errors import SetupError
from methods.intervention import record
from methods.sites import Place
from methods.tokens import Text, split
from tests.sinks import ORDINARY_NORM, planted_sink
from tests.tiny import CONFIGS, tiny_model

TEXTS = [Text([1, 80, 33, 7], 2), Text([1, 120], 1), Text([1, 9, 200, 41, 66, 5, 77], 4), Text([1, 30, 31], 3)]


def stream(model, tokens, layer, site="output"):
    """(T, D) of one text, alone and unpadded."""
    with torch.inference_mode(), record(model, [layer], site) as seen:
        model(input_ids=torch.tensor([tokens]), use_cache=False)
    return seen[layer][0]


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize(
    ("read", "skip_first", "spans"),
    [
        ("all", 0, [(0, 4), (0, 2), (0, 7), (0, 3)]),
        ("all", 1, [(1, 4), (1, 2), (1, 7), (1, 3)]),
        ("continuation", 0, [(2, 4), (1, 2), (4, 7), (2, 3)]),  # the last text has none: its last token
        ("continuation", 3, [(3, 4), (1, 2), (4, 7), (2, 3)]),
        ("last", 0, [(3, 4), (1, 2), (6, 7), (2, 3)]),
    ],
)
def test_pooled_features_are_the_mean_over_the_span(architecture, read, skip_first, spans):
    model = tiny_model(architecture)
    layers = [0, 2]
    pooled = pooled_features(model, TEXTS, layers, read=read, skip_first=skip_first)
    assert pooled.shape == (2, 4, layout.width(model)) and pooled.dtype == torch.float32
    for i, layer in enumerate(layers):
        for row, (text, (start, end)) in enumerate(zip(TEXTS, spans, strict=True)):
            expected = stream(model, text.tokens, layer)[start:end].mean(0)
            torch.testing.assert_close(pooled[i, row], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pooled_features_do_not_depend_on_the_batch(batch_size):
    model = tiny_model("gpt2")
    whole = pooled_features(model, TEXTS, [1], read="all")
    torch.testing.assert_close(
        pooled_features(model, TEXTS, [1], read="all", batch_size=batch_size), whole, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("architecture", CONFIGS)
def test_features_after_the_final_norm_are_last_hidden_states(architecture):
    model = tiny_model(architecture)
    pooled = pooled_features(model, TEXTS, [len(layout.blocks(model)) - 1], read="all", after_final_norm=True)
    for row, text in enumerate(TEXTS):
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([text.tokens]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(pooled[0, row], states[-1][0].mean(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("after_final_norm", "count"), [(False, 2), (True, 5)])
def test_blocks_above_the_last_one_that_is_read_do_not_run(after_final_norm, count):
    model, ran = tiny_model(), []
    for i, block in enumerate(layout.blocks(model)):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    layers = [4] if after_final_norm else [1, 0]
    pooled_features(model, TEXTS, layers, read="all", after_final_norm=after_final_norm)
    assert ran == list(range(count))
    ran.clear()
    mean_norm(model, TEXTS, 2, read="continuation", skip_first=1)
    assert ran == [0, 1, 2]


def test_features_at_the_input_are_those_of_the_block_before():
    model = tiny_model()
    before = pooled_features(model, TEXTS, [1], read="all")
    assert torch.equal(pooled_features(model, TEXTS, [2], read="all", site="input"), before)


def test_mean_difference_by_hand():
    desired, undesired = torch.tensor([[1.0, 2.0], [3.0, 8.0]]), torch.tensor([[0.0, 1.0], [1.0, 2.0]])
    assert mean_difference(desired, undesired).tolist() == [1.5, 3.5]
    assert mean_difference(torch.stack([desired] * 2), torch.stack([undesired] * 2)).shape == (2, 2)


def test_mean_norm_is_a_mean_of_lengths_not_the_length_of_a_mean():
    model = tiny_model()
    spans = zip(TEXTS[:2], (slice(2, 4), slice(1, 2)), strict=True)
    expected = [stream(model, text.tokens, 2)[span].norm(dim=-1).mean() for text, span in spans]
    found = mean_norm(model, TEXTS[:2], 2, read="continuation", skip_first=1)
    assert found == pytest.approx(float(sum(expected) / 2), rel=1e-4)
    assert mean_norm(model, TEXTS[:2], 2, read="continuation", skip_first=1, batch_size=1) == pytest.approx(found)


def test_texts_that_are_only_the_first_token_have_no_length():
    """The first token is an attention sink: averaged in, it made the unit of strength 10 to 20 times too large."""
    model, short = tiny_model(), Text([9], 0)
    found = mean_norm(model, [*TEXTS, short], 2, read="continuation", skip_first=1)
    assert found == mean_norm(model, TEXTS, 2, read="continuation", skip_first=1)
    assert mean_norm(model, [short], 2, read="continuation", skip_first=0) > 0
    with pytest.raises(SetupError, match="all 2 texts end within their first token, .* give longer texts"):
        mean_norm(model, [short, short], 2, read="continuation", skip_first=1)


@pytest.mark.parametrize(
    ("read", "skip_first", "count"),
    [("all", 1, 1), ("continuation", 1, 1), ("continuation", 9, 1), ("last", 2, 1), ("all", 2, 2)],
)
def test_a_text_that_is_left_out_as_a_whole_is_refused(read, skip_first, count):
    model = tiny_model()
    texts, places = [*TEXTS, Text([9], 1)], [Place(layout.blocks(model)[1], "output", layout.width(model))]
    for call in (
        lambda: pooled_features(model, texts, [1], read=read, skip_first=skip_first),
        lambda: directions.pooled_at(model, texts, places, read=read, skip_first=skip_first),
    ):
        with pytest.raises(SetupError, match=rf"^{count} of 5 texts .*method.skip_first={skip_first} .*skip_first=0"):
            call()
    found = pooled_features(model, texts, [1], read=read, skip_first=skip_first, short="last")[0, -1]
    torch.testing.assert_close(found, stream(model, [9], 1)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_planted_sink_dominates_what_includes_it(architecture):
    """The helper other tests rely on: the sink is where it should be, and an ordinary token is not."""
    lm, pairs, direction, sink = planted_sink(architecture)
    (text,) = split(lm.tokenizer, pairs.prompt[:1], pairs.desired[:1])
    hidden = stream(lm.model, text.tokens, 1)
    assert hidden[0] @ sink > 99 and hidden[1:].norm(dim=-1).max() < 1.5
    assert hidden[1 : text.prompt].norm(dim=-1).max() < 3 * ORDINARY_NORM
    assert (hidden[text.prompt :] @ direction).min() > 0.8
    for read, skip_first, low, high in (("all", 0, 0.0, 0.6), ("all", 1, 0.99, 1.0), ("continuation", 0, 0.99, 1.0)):
        features = [
            pooled_features(lm.model, split(lm.tokenizer, pairs.prompt, texts), [1], read=read, skip_first=skip_first)[
                0
            ]
            for texts in (pairs.desired, pairs.undesired)
        ]
        cosine = torch.cosine_similarity(directions.mean_difference(*features), direction, dim=0)
        assert low <= cosine <= high + 1e-5, (read, skip_first)


@pytest.mark.parametrize("read", ["all", "continuation", "last"])
def test_places_are_pooled_as_blocks_are(read):
    model = tiny_model()
    texts = [Text([5, 6, 7, 8, 9], 2), Text([7, 8, 9], 1), Text([3, 4], 2)]
    blocks = [Place(block, "output", layout.width(model)) for block in layout.blocks(model)]
    found = directions.pooled_at(model, texts, blocks, read=read, skip_first=1)
    wanted = directions.pooled_features(model, texts, range(len(blocks)), read=read, skip_first=1)
    assert torch.equal(torch.stack(found), wanted)


def test_the_largest_value_is_over_the_tokens_read_alone():
    model = tiny_model()
    texts = [Text([5, 6, 7, 8, 9], 2), Text([7, 8], 1)]
    place = sites.neurons(model, 1)
    whole = directions.pooled_at(model, texts, [place], read="all", reduce="max", skip_first=1)[0]
    alone = [directions.pooled_at(model, [text], [place], read="all", reduce="max", skip_first=1)[0] for text in texts]
    assert torch.allclose(whole, torch.cat(alone), atol=1e-6)
    tail = directions.pooled_at(model, texts[1:], [place], read="last")[0]
    assert torch.allclose(whole[1:], tail, atol=1e-6)  # of two tokens the first is left out
