"""What training one dictionary needs: its file, its memory, and the work of its steps. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mechstudy.core.errors import MechstudyError
from mechstudy.core.sizes import safetensors_bytes
from mechstudy.dictionaries.config import DictionaryConfig
from mechstudy.models.shapes import ModelShapes
from mechstudy.study.study import Study
from mechstudy.study.unit import Work

_LOGS = 8_000  # bytes of cfg.json, evaluation.json, scalars and TensorBoard's events, for a short training
_LOG_LINE = 260  # bytes of a line of scalars.jsonl and its events
_STATISTICS_ROWS = 16_384
_SKIP_ROWS_PER_INPUT = 16
_SAMPLE_ROWS = 2_048
_ADAM_PASSES = 7  # weight, gradient and both moments are read, all but the gradient are written
_ROW_PASSES = 4  # active rows are gathered for reconstruction and values, scattered for both gradients
_PREFETCHED = 5  # batches


@dataclass(frozen=True)
class DictionaryCost:
    """``weights`` bytes of float32 weights; ``memory`` the working set of training, ``disk`` the artifact's bytes."""

    d_in: int
    d_out: int
    n_features: int
    k: int
    with_skip: bool
    weights: int
    memory: int
    disk: int
    flops: float
    work: tuple[Work, ...]
    payload: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    shapes: Mapping[str, str] = field(default_factory=dict)


def dictionary_cost(study: Study, architecture: DictionaryConfig, x: ModelShapes) -> DictionaryCost:
    """Of training one layer's dictionary from rows that are there."""
    d = study.dictionaries
    t = d.training
    d_in, d_out = (x.width(kind) for kind in d.sites())
    n = features_of(architecture, d_in)
    skip = architecture.kind == "skip_transcoder"
    n_weights = n * (d_in + d_out + 1) + d_out + (d_in * d_out if skip else 0)
    rows, k = t.batch_size, architecture.k
    dense = 2.0 * rows * n * d_in + (4.0 * rows * d_in * d_out if skip else 0.0)
    sparse = _ROW_PASSES * 4.0 * rows * k * (d_in + d_out) / 2
    streamed_bytes = 4.0 * _ADAM_PASSES * n_weights + 3.0 * 4 * rows * n + 10.0 * 4 * rows * (d_in + d_out)
    read = float(rows * (d_in + (d_out if d_in != d_out or skip else 0)) * 2)
    first = max(_STATISTICS_ROWS, _SKIP_ROWS_PER_INPUT * d_in if skip else 0)
    judged = min(d.evaluation_rows, study.corpus.held_out_rows * study.corpus.context)
    payload = {"dictionary/sae_weights.safetensors": file_bytes(architecture, n, d_in, d_out)}
    work = (
        Work("train", t.steps * dense, t.precision, min(d_in, rows)),
        Work("sparse", t.steps * sparse),
        Work("stream", t.steps * (streamed_bytes + 4 * read)),
        Work("read", min(t.steps * read, _epoch_bytes(study, d_in, d_out))),
        Work("train", 2.0 * first * (d_in * d_out if skip else 0) + 2.0 * first * n * d_in, "float32", min(d_in, n)),
        Work("train", 2.0 * judged * n * d_in, "float32", min(d_in, n)),
        Work("stream", 8.0 * judged * (10 * (d_in + d_out) + n)),
        Work("write", sum(payload.values())),
    )
    training = (
        4 * 4 * n_weights  # with gradients and both moments
        + (2 * n * (d_in + d_out) if t.precision != "float32" else 0)
        + 4 * (rows // t.accumulate) * n * 3
        + 4 * rows * (d_in + d_out) * (4 + _PREFETCHED)
    )
    covariances = 24 * d_in * (d_in + d_out) if skip else 0
    starting = 4 * n_weights + covariances + 2 * 4 * _SAMPLE_ROWS * n + 8 * rows * (d_in + d_out)
    memory = max(training + 4 * n_weights, starting)  # the finished dictionary is made beside the training
    lines = 1 + t.steps // t.log_every
    return DictionaryCost(
        d_in, d_out, n, k, skip, 4 * n_weights, memory,
        sum(payload.values()) + _LOGS + _LOG_LINE * lines, t.steps * dense, work, payload,
        f"{t.steps:,} steps x {t.batch_size:,} rows",
        {"width": f"{d_in} > {n:,} (k {k}) > {d_out}"},
    )  # fmt: skip


def streamed(cost: DictionaryCost) -> DictionaryCost:
    """What is left to do where the training was part of a streamed pass: copying and judging."""
    judging = cost.work[-3:]
    memory = 2 * cost.weights
    return replace(cost, memory=memory, flops=0.0, work=(Work("read", cost.disk), *judging))


def features_of(architecture: DictionaryConfig, d_in: int) -> int:
    """Number of features; its mistakes at their field of the study."""
    try:
        return architecture.width(d_in)
    except MechstudyError as error:
        where = f"dictionaries.architecture.{error.where}"
        raise MechstudyError(error.what, where=where, facts=error.facts, fix=error.fix) from None


def file_bytes(architecture: DictionaryConfig, n_features: int, d_in: int, d_out: int) -> int:
    """Bytes of ``sae_weights.safetensors``, exactly: all architectures but TopK are JumpReLU ones there."""
    tensors: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, n_features),
        "b_enc": (n_features,),
        "W_dec": (n_features, d_out),
        "b_dec": (d_out,),
    }
    if architecture.kind == "skip_transcoder":
        tensors["W_skip"] = (d_out, d_in)
    if architecture.activation != "topk":
        tensors["threshold"] = (n_features,)
    return safetensors_bytes(tensors, "float32")


def _epoch_bytes(study: Study, d_in: int, d_out: int) -> float:
    """Of the store's rows: read from disk once, then from the page cache."""
    widths = d_in if d_in == d_out and study.dictionaries.architecture.kind == "sae" else d_in + d_out
    return 2.0 * study.corpus.train_rows * study.corpus.context * widths
