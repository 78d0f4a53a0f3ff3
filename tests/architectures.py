"""Tiny random models of the architectures that every method is to work with, by name."""

from collections.abc import Callable

import torch
import transformers as hf
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.model.lm import LM
from tests.tiny import VOCABULARY, tiny_tokenizer

BASE = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
GROUPED = BASE | dict(num_key_value_heads=2)
HEADS = GROUPED | dict(head_dim=8)
WINDOW = dict(sliding_window=6)
ALIBI = dict(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0)
GPT = dict(
    vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, n_inner=44, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
EXPERTS = GROUPED | dict(num_experts_per_tok=2)
FALCON = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=44,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=256,
)  # fmt: skip


def _gemma3_multimodal() -> hf.Gemma3Config:
    """A vision tower as deep as the language model, so that the depth alone tells nothing."""
    text = HEADS | WINDOW | dict(layer_types=["sliding_attention", "full_attention"])
    vision = dict(
        hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    return hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=299)


CONFIGS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "mistral": lambda: hf.MistralConfig(**GROUPED, **WINDOW),
    "mixtral": lambda: hf.MixtralConfig(**EXPERTS, num_local_experts=3),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**HEADS),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**EXPERTS, head_dim=8, num_experts=3, moe_intermediate_size=20),
    "gemma": lambda: hf.GemmaConfig(**HEADS),
    "gemma2": lambda: hf.Gemma2Config(**HEADS, **WINDOW),
    "gemma3": lambda: hf.Gemma3TextConfig(**HEADS, **WINDOW, layer_types=["sliding_attention", "full_attention"]),
    "gemma3_multimodal": _gemma3_multimodal,
    "phi2": lambda: hf.PhiConfig(**BASE),
    "phi3": lambda: hf.Phi3Config(**GROUPED, **WINDOW),
    "falcon": lambda: hf.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_multi_query": lambda: hf.FalconConfig(**FALCON, multi_query=True),
    "falcon_alibi": lambda: hf.FalconConfig(**FALCON, multi_query=False, alibi=True, parallel_attn=False),
    "olmo2": lambda: hf.Olmo2Config(**GROUPED),
    "olmo3": lambda: hf.Olmo3Config(**GROUPED, **WINDOW, layer_types=["sliding_attention", "full_attention"]),
    "smollm3": lambda: hf.SmolLM3Config(**GROUPED),
    "granite": lambda: hf.GraniteConfig(**GROUPED),
    "stablelm": lambda: hf.StableLmConfig(**GROUPED),
    "bloom": lambda: hf.BloomConfig(**ALIBI),
    "gpt2": lambda: hf.GPT2Config(**GPT),
    "gptj": lambda: hf.GPTJConfig(**GPT, rotary_dim=4),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**BASE),
    "opt": lambda: hf.OPTConfig(**(BASE | dict(word_embed_proj_dim=32, ffn_dim=44))),
    "qwen3_moe_mixed": lambda: hf.Qwen3MoeConfig(
        **EXPERTS, head_dim=8, num_experts=3, moe_intermediate_size=20, mlp_only_layers=[0]
    ),
}
"""The last is a mixture of experts of which one block has an ordinary MLP; Falcon stands there in its three builds."""


def model_of(architecture: str, seed: int = 0, attention: str | None = None) -> PreTrainedModel:
    """A fresh model with random weights, none of them zero or one.

    attention: eager or sdpa; None is what the model has when it is loaded.
    """
    config = CONFIGS[architecture]()
    config._attn_implementation = attention
    made = (
        hf.Gemma3ForConditionalGeneration if architecture == "gemma3_multimodal" else AutoModelForCausalLM.from_config
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = made(config)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
            parameter.requires_grad_(False)
    return model.eval()


def lm_of(architecture: str, seed: int = 0) -> LM:
    """Model and tokenizer together."""
    return LM(model_of(architecture, seed), tiny_tokenizer(), {"tiny": architecture, "seed": seed})
