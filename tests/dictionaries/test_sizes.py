"""Sizes from shapes equal those of trained dictionaries and written files."""

from __future__ import annotations

import pytest
import torch

from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.sizes import file_bytes, n_weights, step_work, training_memory
from mechstudy.dictionaries.training.trainer import train

RECIPE = TrainConfig(steps=2, batch_size=32, tensorboard=False, precision="float32")


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip_transcoder"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_weights_and_file_have_the_computed_size(tmp_path, kind, activation):
    cfg = DictionaryConfig(kind=kind, activation=activation, d_sae=24, k=3)
    x, y = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))
    dictionary = train(cfg, RECIPE, x if kind == "sae" else (x, y))
    dictionary.save(tmp_path)
    assert (tmp_path / "sae_weights.safetensors").stat().st_size == file_bytes(cfg, 24, 8, 8)
    trained = [p for name, p in dictionary.named_parameters() if name != "threshold"]
    assert sum(p.numel() for p in trained) == n_weights(cfg, 24, 8, 8)


def test_bfloat16_copies_take_memory_and_skip_paths_take_work():
    plain, skip = (DictionaryConfig(kind=kind) for kind in ("transcoder", "skip_transcoder"))
    narrow, wide = (TrainConfig(precision=precision) for precision in ("bfloat16", "float32"))
    size = (4_096, 512, 512)
    assert training_memory(plain, narrow, *size) - training_memory(plain, wide, *size) == 2 * 4_096 * 1_024
    assert step_work(skip, wide, *size).dense - step_work(plain, wide, *size).dense == 4 * 2_048 * 512 * 512
    assert step_work(skip, wide, *size).read_bytes == 2 * step_work(plain, wide, *size).read_bytes
