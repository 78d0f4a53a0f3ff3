"""What the methods that learn a LoRA share: its change of the weights is what peft computes with the adapter on."""

import pytest
import torch
import transformers as hf

from bench.model.lm import LM
from methods.adapter import adapted, adapter, factors, lora_parameters
from methods.errors import SetupError
from methods.lora import LoRA
from tests.architectures import CONFIGS, HEADS, lm_of
from tests.tiny import tiny_lm, tiny_tokenizer

ARCHITECTURES = ["llama", "gpt2", "phi3", "bloom", "falcon", "mixtral", "qwen3_moe_mixed", "gemma3"]


def logits(lm):
    ids = torch.tensor([lm.encode("The quick brown fox talks about the old tree")])
    with torch.no_grad():
        return lm.model(input_ids=ids, use_cache=False).logits


def filled(model, seed: int = 0) -> None:
    """An adapter that was trained, as far as anyone can see: B is not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_change_of_the_weights_is_the_adapter_on(architecture):
    lm = lm_of(architecture)
    base = logits(lm)
    with adapter(lm.model, 2, 6, 0):
        filled(lm.model)
        on, artefact = logits(lm), factors(lm.model)
    assert torch.equal(logits(lm), base)
    assert (on - base).abs().max() > 1e-3
    with adapted(lm.model, artefact, 1.0, "lora"):
        assert (logits(lm) - on).abs().max() < 1e-5 * on.abs().max()
    assert torch.equal(logits(lm), base)


def test_every_expert_and_router_of_a_mixture_has_its_own():
    lm = lm_of("qwen3_moe_mixed")
    with adapter(lm.model, 2, 4, 0):
        filled(lm.model)
        artefact = factors(lm.model)
    names = {key.removeprefix("adapter.").removesuffix(".up") for key in artefact if key.endswith(".up")}
    matrices = {name for name, one in lm.model.named_parameters() if one.dim() > 1 and "layers." in name}
    left_out = {name for name in matrices if name.startswith("model.layers.0.mlp.")}  # an ordinary MLP; peft does so
    assert len(left_out) == 3 and names == matrices - left_out
    up = artefact["adapter.model.layers.1.mlp.experts.down_proj.up"]
    assert up.shape[0] == 3 and len({float(one.sum()) for one in up}) == 3


def test_a_router_that_returns_two_tensors_is_left_out():
    """Llama 4's is a linear layer that returns the scores, too, so peft cannot add to what it returns."""
    config = hf.Llama4TextConfig(**HEADS, intermediate_size_mlp=52, num_local_experts=2, interleave_moe_layer_step=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = LM(hf.AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer(), {"tiny": "llama4"})
    with adapter(lm.model, 2, 4, 0):
        filled(lm.model)
        on, artefact = logits(lm), factors(lm.model)
    assert "adapter.model.layers.0.feed_forward.shared_expert.up_proj.weight.up" in artefact
    assert "adapter.model.layers.0.feed_forward.experts.down_proj.up" in artefact
    assert not any("router" in key for key in artefact)
    with adapted(lm.model, artefact, 1.0, "lora"):
        assert (logits(lm) - on).abs().max() < 1e-5 * on.abs().max()


def test_the_parameters_keep_their_order():
    """In GPT-OSS an expert's matrix stands before its bias; peft registers it anew, behind the bias."""
    config = hf.GptOssConfig(**HEADS, num_local_experts=2, num_experts_per_tok=1)
    lm = LM(hf.AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer(), {"tiny": "gpt_oss"})
    before = list(lm.model.state_dict())
    with adapter(lm.model, 2, 4, 0):
        logits(lm)
    assert list(lm.model.state_dict()) == before


def test_an_adapter_that_learnt_nothing_changes_nothing():
    lm = tiny_lm()
    before = {name: one.clone() for name, one in lm.model.named_parameters()}
    with adapter(lm.model, 4, 8, 0):
        artefact = factors(lm.model)
    assert all(not one.any() for key, one in artefact.items() if key.endswith(".up"))
    with adapted(lm.model, artefact, 1.0, "lora"):
        assert all(torch.equal(one, before[name]) for name, one in lm.model.named_parameters())


def test_alpha_over_rank_is_in_the_change():
    changes = []
    for alpha in (4, 12):
        lm = tiny_lm()
        with adapter(lm.model, 4, alpha, 0):
            filled(lm.model)
            found = factors(lm.model)
        changes.append(next(found[key] @ found[f"{key[:-3]}.down"] for key in found if key.endswith(".up")))
    torch.testing.assert_close(changes[1], 3 * changes[0])


def test_no_adapter_is_an_error_and_not_the_base_model():
    lm = tiny_lm()
    with pytest.raises(SetupError, match="holds no adapter"), LoRA().apply(lm.model, {}, 1.0):
        pass
    with LoRA().apply(lm.model, {}, 0.0):
        pass


def test_an_adapter_of_another_model_is_refused_and_undone():
    lm, other = tiny_lm(), lm_of("llama")
    assert "llama" in CONFIGS
    with adapter(lm.model, 2, 4, 0):
        filled(lm.model)
        artefact = factors(lm.model)
    before = {name: one.clone() for name, one in other.model.named_parameters()}
    with pytest.raises(SetupError, match="was not fitted on this model"), LoRA().apply(other.model, artefact, 1.0):
        pass
    assert all(torch.equal(one, before[name]) for name, one in other.model.named_parameters())
