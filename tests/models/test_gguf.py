"""GGUF files: the name without the quantisation, and rotary positions scaled as the file says."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

from mechstudy.core.errors import MechstudyError
from mechstudy.models import gguf_conversion
from mechstudy.models.folder import read_config
from mechstudy.models.loading import load_model
from mechstudy.models.sources import gguf_name, resolve_source

BYTES = [chr(c) for c in range(33, 127)] + ["\u0120", "!!"]
HEADS, WIDTH, FEED = 4, 64, 128


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("Qwen2.5-0.5B-Instruct-Q8_0", "Qwen2.5-0.5B-Instruct"),
        ("Llama-3.2-1B-Instruct-Q4_K_M", "Llama-3.2-1B-Instruct"),
        ("Llama-3.2-3B-Instruct-UD-Q2_K_XL", "Llama-3.2-3B-Instruct"),
        ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct"),
        ("gemma-3-1b-it-BF16", "gemma-3-1b-it"),
        ("Mistral-7B-v0.3.IQ4_XS", "Mistral-7B-v0.3"),
        ("Phi-4-mini-f16", "Phi-4-mini"),
        ("tiny", "tiny"),
        ("model", "Written Inside"),
        ("Q4_0", "Written Inside"),
    ],
)
def test_the_name_is_the_files_without_its_quantisation(stem, name):
    assert gguf_name(stem, "Written Inside") == name
    assert gguf_name(stem) in (name, stem)


def write(
    path: Path,
    *,
    linear: float | None = None,
    yarn: bool = False,
    freqs: np.ndarray | None = None,
    old_linear: float | None = None,
    factor_alone: float | None = None,
    without: str | None = None,
    experts: int | None = None,
) -> Path:
    """A tiny random Llama; always the same weights."""
    draw = np.random.default_rng(0)
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_name("Tiny Llama 3.2")
    w.add_context_length(131_072)
    w.add_embedding_length(WIDTH)
    w.add_block_count(1)
    w.add_feed_forward_length(FEED)
    w.add_head_count(HEADS)
    w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(WIDTH // HEADS)
    w.add_rope_freq_base(500_000.0)
    w.add_vocab_size(len(BYTES))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("default")
    w.add_token_list([c.encode() for c in BYTES])
    w.add_token_types([1] * len(BYTES))
    w.add_token_merges(["! !"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(0)
    if linear or yarn:
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR if linear else gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(linear or 4.0)
    if old_linear:
        w.add_float32("llama.rope.scale_linear", old_linear)
    if factor_alone:
        w.add_rope_scaling_factor(factor_alone)
    if experts:
        w.add_expert_count(experts)
    if freqs is not None:
        w.add_tensor("rope_freqs.weight", freqs.astype(np.float32))
    shapes = {
        "token_embd": (len(BYTES), WIDTH), "output": (len(BYTES), WIDTH), "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,), "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (WIDTH // 2, WIDTH), "blk.0.attn_v": (WIDTH // 2, WIDTH), "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (FEED, WIDTH), "blk.0.ffn_up": (FEED, WIDTH), "blk.0.ffn_down": (WIDTH, FEED),
    }  # fmt: skip
    for name, shape in shapes.items():
        values = draw.normal(size=shape).astype(np.float32) * shape[-1] ** -0.5
        if name != without:
            w.add_tensor(f"{name}.weight", values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def llama3_divisors(factor: float) -> np.ndarray:
    """What llama.cpp writes for Llama 3.1 and 3.2: the formula of Meta's reference code."""
    width = WIDTH // HEADS
    wavelengths = 2 * np.pi * 500_000.0 ** (np.arange(0, width, 2) / width)
    low, high, old = 1.0, 4.0, 8192
    smooth = (old / wavelengths - low) / (high - low)
    middle = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelengths < old / high, 1.0, np.where(wavelengths > old / low, factor, middle))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path


def rope(path: Path) -> dict:
    return read_config(resolve_source(f"gguf:{path}"))["rope_parameters"]


@pytest.mark.parametrize("written", ["linear", "old_linear", "factor_alone"])
def test_a_linear_factor_is_kept(cache, written):
    plain, scaled = write(cache / "plain.gguf"), write(cache / "linear.gguf", **{written: 8.0})
    assert rope(plain)["rope_type"] == "default"
    assert (rope(scaled)["rope_type"], rope(scaled)["factor"]) == ("linear", 8.0)
    tokens = torch.arange(1, 60)[None]
    one, other = (load_model(f"gguf:{path}", device="cpu").forward(tokens).logits for path in (plain, scaled))
    assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_frequencies_of_llama_3_are_kept(cache, factor):
    path = write(cache / "llama3.gguf", freqs=llama3_divisors(factor))
    assert rope(path) | {"rope_theta": 0} == {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 0,
    }  # fmt: skip


@pytest.mark.parametrize("scaling", [{"yarn": True}, {"freqs": np.linspace(1, 9, 8)}])
def test_other_scalings_are_refused(cache, scaling):
    with pytest.raises(MechstudyError, match="scales its rotary positions") as error:
        resolve_source(f"gguf:{write(cache / 'other.gguf', **scaling)}")
    assert "safetensors" in str(error.value)


def test_a_file_that_lacks_a_tensor_is_refused(cache):
    path = write(cache / "holes.gguf", without="blk.0.attn_q")
    with pytest.raises(MechstudyError, match="incomplete: 1 tensors are missing") as error:
        resolve_source(f"gguf:{path}")
    assert "self_attn.q_proj" in str(error.value)
    assert resolve_source(f"gguf:{write(cache / 'tied.gguf', without='output')}").is_dir()  # the embedding, again


def test_a_mixture_of_experts_written_as_a_llama_is_refused(cache):
    path = write(cache / "experts.gguf", without="blk.0.ffn_up", experts=8)
    with pytest.raises(MechstudyError, match="incomplete") as error:
        resolve_source(f"gguf:{path}")
    assert "8, which are not read" in str(error.value)


def test_the_factor_of_gemma_3_is_of_its_layers_that_see_everything(cache, monkeypatch):
    fields = {"general.architecture": "gemma3", "gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    monkeypatch.setattr(gguf_conversion, "_field", lambda reader, name: fields.get(name))
    config = transformers.Gemma3TextConfig(num_hidden_layers=6)
    windowed = dict(config.rope_parameters["sliding_attention"])
    path = write(cache / "gemma.gguf")
    gguf_conversion._restore_rope_scaling(config, gguf_conversion._reader(path), path)
    whole = config.rope_parameters["full_attention"]
    assert (whole["rope_type"], whole["factor"], whole["rope_theta"]) == ("linear", 8.0, 1_000_000.0)
    assert config.rope_parameters == {"sliding_attention": windowed, "full_attention": whole}
    rotary = Gemma3RotaryEmbedding(config)
    plain = Gemma3RotaryEmbedding(transformers.Gemma3TextConfig(num_hidden_layers=6))
    torch.testing.assert_close(rotary.full_attention_inv_freq * 8, plain.full_attention_inv_freq)
    torch.testing.assert_close(rotary.sliding_attention_inv_freq, plain.sliding_attention_inv_freq)


def test_a_part_of_a_split_file_is_refused(cache):
    path = write(cache / "big-00001-of-00002.gguf")
    with pytest.raises(MechstudyError, match="one of 2 parts"):
        resolve_source(f"gguf:{path}")


def test_a_converted_file_is_called_by_its_name(cache):
    assert load_model(f"gguf:{write(cache / 'model.gguf')}", device="cpu").name == "Tiny Llama 3.2"
    path = write(cache / "Llama-3.2-tiny-Q8_0.gguf")
    assert load_model(f"gguf:{path}", device="cpu").name == "Llama-3.2-tiny"
