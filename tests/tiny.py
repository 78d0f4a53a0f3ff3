"""Tiny random models of real architectures and a tokenizer trained on a page of text, for unit tests alone."""

import copy
import functools

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from bench.model.lm import LM
from bench.model.tokenizer import set_bos

VOCABULARY = 300
CORPUS = (
    "The quick brown fox jumps over the lazy dog while a small bird sings in the old tree near the river. "
    "People walk along the water and talk about love and hate, about work, weather, bread and the long road home. "
)

# Odd sizes on purpose: no two of width, MLP width, depth and heads can be mistaken for one another.
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=36, intermediate_size=52, num_hidden_layers=5, num_attention_heads=6,
        num_key_value_heads=3, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=28, n_layer=3, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2,
    ),
    "opt": OPTConfig(
        vocab_size=VOCABULARY, hidden_size=28, word_embed_proj_dim=28, ffn_dim=44, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ),
    "gptj": GPTJConfig(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=256, rotary_dim=4, bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=60, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip


@functools.cache
def _tokenizer(by_words: bool = True) -> str:
    """A byte-level BPE of VOCABULARY tokens, as JSON; by_words: a token is of one word, else it may span any place."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_words)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(bos: str = "prepend") -> PreTrainedTokenizerFast:
    """A fresh tokenizer; every byte is a token, so any text round-trips."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer()), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    set_bos(tokenizer, bos)  # type: ignore[arg-type]
    return tokenizer


def spanning_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that does not part words before it merges, so a token may span any place of a text."""
    made = Tokenizer.from_str(_tokenizer(by_words=False))
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As SentencePiece makes them for Llama-2 and Mistral: a space before every text, bytes for unknown letters."""
    special = ["<pad>", "<s>", "</s>"]
    letters = sorted(set(CORPUS.replace(" ", "\u2581")))
    pieces = special + [f"<0x{byte:02X}>" for byte in range(256)] + letters
    vocabulary = {piece: number for number, piece in enumerate(pieces[:VOCABULARY])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def tiny_model(architecture: str = "llama", seed: int = 0, blocks: int | None = None) -> PreTrainedModel:
    """A fresh random model, the same for the same seed; weights are larger than usual, so that it has opinions.

    blocks: fewer than usual, where the depth does not matter.
    """
    config = copy.deepcopy(CONFIGS[architecture])
    config.num_hidden_layers = blocks or config.num_hidden_layers
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
            parameter.requires_grad_(False)
    return model


def tiny_lm(architecture: str = "llama", seed: int = 0, bos: str = "prepend", blocks: int | None = None) -> LM:
    """Model and tokenizer together."""
    return LM(tiny_model(architecture, seed, blocks), tiny_tokenizer(bos), {"tiny": architecture, "seed": seed})
