"""Models for which padding is not nothing: refused when loaded, or read without gaps."""

import pytest
import torch
import transformers as hf

from bench.model import padding
from bench.model.decoding import Sampling
from bench.model.lm import LM, Request, load_lm
from bench.model.log_likelihood import likelihoods
from bench.model.sampling import continuations
from methods.errors import SetupError
from tests.architectures import CONFIGS, model_of
from tests.tiny import VOCABULARY, tiny_tokenizer

SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
COUNTING = {  # models whose attention depends on the distance in columns
    "mpt": lambda: hf.MptConfig(**SIZES, d_model=32, n_heads=4, n_layers=3, max_seq_len=128),
    "gpt_neo": lambda: hf.GPTNeoConfig(
        **SIZES, hidden_size=32, num_heads=4, num_layers=4, attention_types=[[["global", "local"], 2]], window_size=16,
        max_position_embeddings=128,
    ),
}  # fmt: skip
REFUSED = {
    "bart": lambda: hf.BartConfig(
        **SIZES, d_model=32, encoder_layers=2, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=40,
        encoder_attention_heads=4, encoder_ffn_dim=40, is_decoder=True, is_encoder_decoder=False,
        max_position_embeddings=128,
    ),
    "roberta": lambda: hf.RobertaConfig(
        **SIZES, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, is_decoder=True,
        max_position_embeddings=130,
    ),
    "xlnet": lambda: hf.XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=40),
}  # fmt: skip


def made(config) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # as large as those of trained models, so that attention is not uniform
        parameter.data.mul_(4) if parameter.dim() > 1 else None
    return model


@pytest.mark.parametrize("architecture", CONFIGS)
def test_padding_is_nothing_to_the_known_architectures(architecture):
    padding.check_padding(model_of(architecture))


def test_only_columns_that_are_counted_forbid_gaps():
    assert not padding.needs_no_gaps(model_of("llama")) and not padding.needs_no_gaps(model_of("bloom"))
    assert padding.needs_no_gaps(model_of("gemma3"))  # a sliding window


@pytest.mark.parametrize("architecture", COUNTING)
def test_a_shared_beginning_changes_no_likelihood(architecture):
    model = made(COUNTING[architecture]())
    padding.check_padding(model)
    assert padding.needs_no_gaps(model)
    lm = LM(model, tiny_tokenizer(), {"name": architecture})
    beginning = [3 + i % 20 for i in range(40)]
    asked = [Request([*beginning, *range(5, 5 + tail)], [7, 9, 11]) for tail in (1, 4, 9, 15)]
    together = likelihoods(lm, asked)
    for request, one in zip(asked, together, strict=True):
        assert one.logprob == pytest.approx(likelihoods(lm, [request])[0].logprob, abs=1e-4)
        ids = torch.tensor([request.context + request.continuation])
        with torch.inference_mode():
            logprobs = model(ids).logits[0].log_softmax(-1)
        start = len(request.context) - 1
        whole = sum(float(logprobs[start + i, token]) for i, token in enumerate(request.continuation))
        assert one.logprob == pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", REFUSED)
def test_a_model_that_reads_padding_is_refused_when_loaded(architecture, dtype, tmp_path):
    made(REFUSED[architecture]()).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SetupError, match=f"{architecture}: .*(padding|blocks)"):
        load_lm(str(tmp_path), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_padding_changes_a_little_is_not_taken_for_rounding(dtype):
    """RoFormer's decoder: its logits move by 0.03 to 0.07 of their spread, in either dtype."""
    config = hf.RoFormerConfig(
        **SIZES, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=44, is_decoder=True,
        max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    with pytest.raises(SetupError, match=r"roformer: .* its logits are others \(by 0\.0\d+ of"):
        padding.check_padding(model.to(dtype))


def test_rounding_that_moves_one_text_refuses_no_model(monkeypatch):
    """In 16 bits a router may choose another expert; padding that is read moves every text."""
    model = model_of("llama").to(torch.bfloat16)
    padding.check_padding(model)
    moved: list[int] = []

    def difference(one, other, measured=padding._difference):
        moved.append(len(moved))
        return 0.5 if len(moved) <= count else measured(one, other)

    monkeypatch.setattr(padding, "_difference", difference)
    count = 3  # the first text, and what is measured to know the rounding of its readings
    padding.check_padding(model)
    moved.clear()
    assert not padding.needs_no_gaps(model)
    moved.clear()
    count = 100
    with pytest.raises(SetupError, match="its logits are others"):
        padding.check_padding(model)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: hf.GPT2Config(**SIZES, n_embd=32, n_layer=2, n_head=4, n_positions=4), "max_position_embeddings=4"),
        (
            lambda: hf.MistralConfig(
                **SIZES, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, sliding_window=1,
            ),
            "sliding_window=1",
        ),
    ],
)  # fmt: skip
def test_a_model_of_very_short_texts_is_refused_as_such(config, told):
    with pytest.raises(SetupError, match=f"a text of 6 tokens could not be read .*config says {told}; choose a model"):
        padding.check_padding(made(config()))


def gemma4() -> hf.PreTrainedModel:
    """Its last two blocks read the keys and values of the two before them."""
    return made(
        hf.Gemma4TextConfig(
            **SIZES, hidden_size=32, intermediate_size=44, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, global_head_dim=8, vocab_size_per_layer_input=VOCABULARY,
            hidden_size_per_layer_input=8, layer_types=["sliding_attention", "full_attention"] * 2,
            num_kv_shared_layers=2, sliding_window=8, max_position_embeddings=128,
        )
    )  # fmt: skip


def test_blocks_that_share_keys_and_values_are_sampled_alike():
    """As transformers generates greedily, also beside a longer text."""
    model = gemma4()
    padding.check_padding(model)
    lm = LM(model, tiny_tokenizer(), {"name": "gemma4"})
    prompts = ["The quick brown fox", "a", "The lazy dog sings in the old tree near the river"]
    rows = continuations(lm, prompts, 1, Sampling(max_new_tokens=8, temperature=0))
    for prompt, (one,) in zip(prompts, rows, strict=True):
        ids = torch.tensor([lm.encode(prompt)])
        wanted = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )[0, ids.shape[1] :].tolist()
        assert list(one.tokens) == [token for token in wanted if token not in lm.stop_tokens]


def test_a_cache_that_cannot_be_branched_is_found_when_loaded(monkeypatch):
    def refuse(*_args: object) -> None:
        raise AttributeError("no keys")

    monkeypatch.setattr(padding.kv_cache, "select", refuse)
    with pytest.raises(SetupError, match=r"could not be read with a cache and padding \(AttributeError: no keys\)"):
        padding.check_padding(model_of("llama"))
