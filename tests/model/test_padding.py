"""Models for which padding is not nothing: refused when loaded, or read without gaps."""

import pytest
import torch
import transformers as hf

from bench.model import padding
from bench.model.lm import LM, Request, load_lm
from bench.model.log_likelihood import likelihoods
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


@pytest.mark.parametrize("architecture", REFUSED)
def test_a_model_that_reads_padding_is_refused_when_loaded(architecture, tmp_path):
    made(REFUSED[architecture]()).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SetupError, match=f"{architecture}: .*(padding|blocks)"):
        load_lm(str(tmp_path))
