"""Activations of a corpus or of prompts, from the model into a store."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechstudy.activations.config import Positions
from mechstudy.activations.quota import Quota
from mechstudy.activations.store import Store, StoreWriter
from mechstudy.core.checkpoint import load_checkpoint, save_checkpoint
from mechstudy.core.disk import atomic_path
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.core.runtime import oom_backoff
from mechstudy.core.stopping import Stopped, requested
from mechstudy.models.batches import length_buckets
from mechstudy.models.sites import Site

if TYPE_CHECKING:
    from mechstudy.behaviours.schema import PromptPair
    from mechstudy.models.language_model import LanguageModel

DOCUMENTS_FILE = "documents.jsonl"
CHECKPOINT_SECONDS = 60.0
VERSIONS = ("clean", "corrupted")


def site_width(model: LanguageModel, site: Site) -> int:
    """Number of coordinates at a site."""
    return model.d_mlp if site.kind == "mlp_act" else model.d_model


def capture_corpus(
    model: LanguageModel,
    token_rows: Tensor,
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
    """Store every position of every row at ``sites``.

    Before shuffling, row ``d * T + t`` is token t of document d. Killed and run again with the same
    ``checkpoint``, it goes on where it was and writes the same bytes: batches are cut as the first run cut
    them, whatever ``batch_tokens`` says now. Where a stop is asked for (`core.stopping`), it saves first.

    Args:
        token_rows: token ids [n_documents, T].
        checkpoint: file to resume from, written at most every ``checkpoint_seconds``.
    """
    writer = corpus_writer(model, token_rows, sites, folder, dtype=dtype, seed=seed, quota=quota)
    write_corpus(model, token_rows, writer, batch_tokens, progress, checkpoint, checkpoint_seconds)
    return writer.close()


def capture_corpus_part(
    model: LanguageModel,
    token_rows: Tensor,
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
) -> None:
    """One of ``n_writers`` processes' share of `capture_corpus`; every process is given all ``token_rows``.

    Once all are done, `store.merge` makes the store, the same bytes as one process's: batches are cut where one
    process would cut them, so ``batch_tokens`` has to be the same in all. Each has a checkpoint of its own.
    """
    writer = corpus_writer(
        model, token_rows, sites, folder, dtype=dtype, seed=seed, rank=rank, n_writers=n_writers, quota=quota
    )  # fmt: skip
    write_corpus(model, token_rows, writer, batch_tokens, progress, checkpoint, checkpoint_seconds)
    writer.close_part()


def corpus_writer(
    model: LanguageModel, token_rows: Tensor, sites: Sequence[Site], folder: Path, **how: Any
) -> StoreWriter:
    """A writer for every position of every row, wide enough for each site."""
    return StoreWriter(folder, {site: site_width(model, site) for site in sites}, token_rows.numel(), **how)


def write_corpus(
    model: LanguageModel,
    token_rows: Tensor,
    writer: StoreWriter,
    batch_tokens: int,
    progress: Progress | None,
    checkpoint: Path | None,
    checkpoint_seconds: float,
) -> None:
    """Runs the model over the documents of the writer's rows, from where its checkpoint says on."""
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
    with progress.bar("capture", (last - begin) * context, "tokens", done=done, stops=False) as bar:
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


def capture_prompts(
    model: LanguageModel,
    pairs: Sequence[PromptPair],
    sites: Sequence[Site],
    positions: Positions,
    folder: Path,
    *,
    versions: Sequence[str] = VERSIONS,
    dtype: str = "bfloat16",
    batch_tokens: int = 4096,
    progress: Progress | None = None,
    quota: Quota | None = None,
) -> Store:
    """Store chosen positions of clean and corrupted prompts, in order: pair by pair, clean before corrupted.

    Document ``2 * i`` is pair i's clean prompt and ``2 * i + 1`` its corrupted one; ``documents.jsonl`` says
    their ids, first row and named positions.

    Raises:
        MechstudyError: a position that a prompt does not have (the pair is named).
    """
    if not pairs or not versions:
        raise MechstudyError("there are no prompts to capture")
    progress = progress or NullProgress()
    documents, prompts, chosen = [], [], []
    for number, pair in enumerate(pairs):
        for offset, tokens in enumerate((pair.clean_tokens, pair.corrupted_tokens)):
            if VERSIONS[offset] not in versions:
                continue
            documents.append(2 * number + offset)
            prompts.append(tokens)
            chosen.append(_chosen(pair, positions, len(tokens)))
    firsts = np.concatenate([[0], np.cumsum([len(c) for c in chosen])]).astype(np.int64)
    writer = StoreWriter(
        folder, {site: site_width(model, site) for site in sites}, int(firsts[-1]), dtype, shuffle=False, quota=quota
    )
    _write_documents(folder / DOCUMENTS_FILE, pairs, documents, [len(p) for p in prompts], firsts)
    with progress.bar("capture", len(prompts), "prompts") as bar:
        for members in length_buckets([len(tokens) for tokens in prompts], batch_tokens):
            tokens_BT = torch.tensor([prompts[i] for i in members])
            found = activations_at(model, tokens_BT, sites, progress)
            length = tokens_BT.shape[1]
            flat = np.concatenate([row * length + chosen[i] for row, i in enumerate(members)])
            writer.put(
                np.concatenate([firsts[i] + np.arange(len(chosen[i])) for i in members]),
                {site: values[torch.from_numpy(flat).to(values.device)] for site, values in found.items()},
                np.concatenate([np.full(len(chosen[i]), documents[i]) for i in members]),
                flat % length,
                tokens_BT.flatten()[torch.from_numpy(flat)],
            )
            bar.advance(len(members))
    return writer.close()


def activations_at(
    model: LanguageModel, tokens_BT: Tensor, sites: Sequence[Site], progress: Progress
) -> dict[Site, Tensor]:
    """Activations [B * T, width] of each site; halves the batch where memory runs out."""
    deepest = max(site.layer for site in sites)

    def forward(size: int) -> dict[Site, Tensor]:
        parts = [
            model.forward(part, capture=sites, stop_after=deepest, logits_at=None).activations
            for part in tokens_BT.split(size)
        ]
        return {site: torch.cat([part[site].flatten(0, 1) for part in parts]) for site in sites}

    return oom_backoff(forward, len(tokens_BT), progress)


def _chosen(pair: PromptPair, positions: Positions, length: int) -> NDArray[np.int64]:
    try:
        return np.array(positions.resolve(pair.positions, length), dtype=np.int64)
    except MechstudyError as error:
        raise MechstudyError(error.what, where=f"prompt {pair.id}", facts=error.facts, fix=error.fix) from error


def _write_documents(
    file: Path,
    pairs: Sequence[PromptPair],
    documents: Sequence[int],
    lengths: Sequence[int],
    firsts: NDArray[np.int64],
) -> None:
    with atomic_path(file) as temporary, temporary.open("w") as out:
        for i, (document, length) in enumerate(zip(documents, lengths, strict=True)):
            pair = pairs[document // 2]
            record = {
                "document": document,
                "id": pair.id,
                "version": VERSIONS[document % 2],
                "length": length,
                "first_row": int(firsts[i]),
                "n_rows": int(firsts[i + 1] - firsts[i]),
                "positions": dict(pair.positions),
            }
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
