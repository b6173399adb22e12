"""Bytes, memory and arithmetic of a dictionary and its training, from shapes alone. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from mechstudy.core.sizes import safetensors_bytes
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig

STATISTICS_ROWS = 16_384  # rows on which the normalisation is measured
SAMPLE_ROWS = 2_048  # rows from which the first biases and thresholds are set
SKIP_ROWS_PER_INPUT = 16  # rows per input coordinate for the ridge regression of the skip path

_ADAM_PASSES = 7  # weight, gradient and both moments are read, all but the gradient are written
_ROW_PASSES = 4  # active rows are gathered for reconstruction and values, scattered for both gradients
_PREFETCHED = 5  # batches
_LOG_LINE = 260  # bytes of a line of scalars.jsonl and its TensorBoard events


def statistics_rows(d_in: int, *, with_skip: bool) -> int:
    """Rows on which the normalisation, and a skip path's regression, are measured."""
    return max(STATISTICS_ROWS, SKIP_ROWS_PER_INPUT * d_in if with_skip else 0)


def n_weights(cfg: DictionaryConfig, n_features: int, d_in: int, d_out: int) -> int:
    """Trained numbers of a dictionary of one site: both matrices, biases and the skip path."""
    skip = d_in * d_out if cfg.kind == "skip_transcoder" else 0
    return n_features * (d_in + d_out + 1) + d_out + skip


def file_bytes(cfg: DictionaryConfig, n_features: int, d_in: int, d_out: int) -> int:
    """Exact bytes of ``sae_weights.safetensors``; every architecture but TopK is stored as a JumpReLU."""
    tensors: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, n_features),
        "b_enc": (n_features,),
        "W_dec": (n_features, d_out),
        "b_dec": (d_out,),
    }
    if cfg.kind == "skip_transcoder":
        tensors["W_skip"] = (d_out, d_in)
    if cfg.activation != "topk":
        tensors["threshold"] = (n_features,)
    return safetensors_bytes(tensors, "float32")


def log_bytes(recipe: TrainConfig) -> int:
    """Bytes of the logged scalars, in both forms."""
    return _LOG_LINE * (1 + recipe.steps // recipe.log_every)


def training_memory(cfg: DictionaryConfig, recipe: TrainConfig, n_features: int, d_in: int, d_out: int) -> int:
    """Largest working set of a training in bytes: its steps, its start, or the finished dictionary beside it."""
    n, numbers, rows = n_features, n_weights(cfg, n_features, d_in, d_out), recipe.batch_size
    training = (
        4 * 4 * numbers  # with gradients and both moments
        + (2 * n * (d_in + d_out) if recipe.precision != "float32" else 0)
        + 4 * (rows // recipe.accumulate) * n * 3
        + 4 * rows * (d_in + d_out) * (4 + _PREFETCHED)
    )
    covariances = 24 * d_in * (d_in + d_out) if cfg.kind == "skip_transcoder" else 0
    starting = 4 * numbers + covariances + 2 * 4 * SAMPLE_ROWS * n + 8 * rows * (d_in + d_out)
    return max(training + 4 * numbers, starting)


@dataclass(frozen=True)
class StepWork:
    """Work of one training step: FLOPs of dense and of sparse products, bytes of memory traffic, bytes of rows read."""

    dense: float
    sparse: float
    streamed_bytes: float
    read_bytes: float


def step_work(cfg: DictionaryConfig, recipe: TrainConfig, n_features: int, d_in: int, d_out: int) -> StepWork:
    """Work of one training step on rows stored as bfloat16."""
    n, rows, skip = n_features, recipe.batch_size, cfg.kind == "skip_transcoder"
    return StepWork(
        dense=2.0 * rows * n * d_in + (4.0 * rows * d_in * d_out if skip else 0.0),
        sparse=_ROW_PASSES * 4.0 * rows * cfg.k * (d_in + d_out) / 2,
        streamed_bytes=4.0 * _ADAM_PASSES * n_weights(cfg, n, d_in, d_out) + 3.0 * 4 * rows * n
        + 10.0 * 4 * rows * (d_in + d_out),
        read_bytes=float(rows * (d_in + (d_out if d_in != d_out or skip else 0)) * 2),
    )  # fmt: skip
