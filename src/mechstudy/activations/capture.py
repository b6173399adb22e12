"""Captures the activations of a corpus into a store (for prompts, see `prompt_capture`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.activations.quota import Quota
from mechstudy.activations.store import Store
from mechstudy.activations.writer import StoreWriter
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.core.signals import Stopped, requested
from mechstudy.models.batches import captured
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site
from mechstudy.store.checkpoint import load_checkpoint, save_checkpoint

CHECKPOINT_SECONDS = 60.0


def capture_corpus(
    model: LanguageModel,
    token_rows: Int[Tensor, "documents t"],
    sites: Sequence[Site],
    folder: Path,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    quota: Quota | None = None,
) -> Store:
    """Captures every position of every row at ``sites`` into a store.

    Before shuffling, row ``d * T + t`` is token t of document d. A killed capture resumes from its checkpoint and
    writes the same bytes: batches are those of the first run, whatever ``batch_tokens`` is now. A requested stop
    (`core.signals`) saves a checkpoint first.

    Args:
        model: the model to run.
        token_rows: token ids, one document per row.
        sites: the sites to capture.
        folder: where the store is written.
        dtype: of stored rows: ``bfloat16``, ``float32`` or ``int8``.
        seed: of the shuffle.
        batch_tokens: tokens per forward pass.
        progress: reports tokens.
        checkpoint: file to resume from.
        checkpoint_seconds: least time between two checkpoints.
        quota: limit on the bytes of the run's files.

    Raises:
        MechstudyError: the disk, or the quota, has not enough room.
    """
    writer = corpus_writer(model, token_rows, sites, folder, dtype=dtype, seed=seed, quota=quota)
    write_corpus(model, token_rows, writer, batch_tokens, progress, checkpoint, checkpoint_seconds)
    return writer.close()


def capture_corpus_part(
    model: LanguageModel,
    token_rows: Int[Tensor, "documents t"],
    sites: Sequence[Site],
    folder: Path,
    rank: int,
    n_writers: int,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    quota: Quota | None = None,
    label: str = "capture",
) -> None:
    """One of ``n_writers`` processes' share of `capture_corpus`; every process passes all ``token_rows``.

    When all are done, `writer.merge` makes the store, with the bytes that one process would write. For that,
    ``batch_tokens`` has to be the same in all processes. Each process has its own checkpoint.
    """
    writer = corpus_writer(
        model, token_rows, sites, folder, dtype=dtype, seed=seed, rank=rank, n_writers=n_writers, quota=quota
    )  # fmt: skip
    write_corpus(model, token_rows, writer, batch_tokens, progress, checkpoint, checkpoint_seconds, label)
    writer.close_part()


def corpus_writer(
    model: LanguageModel, token_rows: Tensor, sites: Sequence[Site], folder: Path, **options: Any
) -> StoreWriter:
    """A writer for every position of every row at ``sites``; ``options`` are those of `StoreWriter`."""
    return StoreWriter(folder, {site: model.width(site) for site in sites}, token_rows.numel(), **options)


def write_corpus(
    model: LanguageModel,
    token_rows: Tensor,
    writer: StoreWriter,
    batch_tokens: int,
    progress: Progress | None,
    checkpoint: Path | None,
    checkpoint_seconds: float,
    label: str = "capture",
) -> None:
    """Runs the model over the documents of the writer's rows, from the checkpoint on."""
    context = token_rows.shape[1]
    progress = progress or NullProgress()
    sites = list(writer.sites)
    batch = max(1, batch_tokens // context)
    saved = load_checkpoint(checkpoint) if checkpoint else None
    if saved is not None:
        writer.restore(*saved)
        batch = int(saved[1]["batch"])
    positions_T = np.arange(context, dtype=np.int32)
    begin = writer.first_row // context
    first = writer.written_rows // (batch * context) * batch
    last = -(-writer.last_row // context) if writer.last_row > writer.first_row else first
    last_save = time.monotonic()
    done = max(0, first - begin) * context
    with progress.bar(label, (last - begin) * context, "tokens", done=done, stops=False) as bar:
        for start in range(first, last, batch):
            tokens_BT = token_rows[start : start + batch].long()
            size = len(tokens_BT)
            writer.put(
                start * context,
                activations_at(model, tokens_BT, sites, progress),
                np.repeat(np.arange(start, start + size, dtype=np.int32), context),
                np.tile(positions_T, size),
                tokens_BT.flatten(),
            )
            stop = requested()
            if checkpoint and (stop or time.monotonic() - last_save >= checkpoint_seconds):
                tensors, state = writer.state()
                save_checkpoint(checkpoint, tensors, {**state, "batch": batch})
                last_save = time.monotonic()
            bar.advance(size * context)
            if stop:
                raise Stopped(f"{writer.written_rows:,} of {writer.n_rows:,} rows are on disk")


def activations_at(
    model: LanguageModel, tokens_BT: Int[Tensor, "b t"], sites: Sequence[Site], progress: Progress
) -> dict[Site, Float[Tensor, "rows width"]]:
    """Activations [B * T, width] at each site. Where memory runs out, the batch is halved and tried again."""
    return {site: rows.flatten(0, 1) for site, rows in captured(model, tokens_BT, sites, progress).items()}
