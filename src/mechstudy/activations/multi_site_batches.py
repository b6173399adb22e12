"""Batches of the same rows at several sites, from a store or directly from forward passes of the model.

Both kinds feed `dictionaries.training.train_many`. A batch is fully determined by its step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.activations.capture import activations_at
from mechstudy.activations.mixing import mixing
from mechstudy.activations.prefetch import prefetched
from mechstudy.activations.reader import KeptRows, checksums_of, files_of, kept_positions, sink_limit
from mechstudy.activations.statistics import SINK_RATIO
from mechstudy.activations.store import Store
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


class StoreBatches:
    """Batches of a store's rows at several sites, read together, without first positions.

    The store is shuffled on disk, so an epoch reads every file from end to end. The seed determines where it begins.

    Args:
        store: the store.
        sites: the sites to read.
        batch_size: rows per batch.
        seed: where in the store the first epoch begins.
        sink_ratio: rows of a larger norm than this, relative to the median, count as sinks (``limits``).
        prefetch: batches read ahead.
        verify: compare every block with its checksum when it is first read (see `RowReader`).

    Raises:
        MechstudyError: no row is left, or a site was not captured.
    """

    def __init__(
        self, store: Store, sites: Sequence[Site], batch_size: int, *, seed: int = 0,
        sink_ratio: float | None = SINK_RATIO, prefetch: int = 2, verify: bool = False,
    ) -> None:  # fmt: skip
        self.store, self.sites, self.batch_size, self.prefetch = store, tuple(sites), batch_size, prefetch
        files = {site: files_of(store, site) for site in self.sites}
        self.widths = {str(site): file.width for site, file in files.items()}
        limits = {str(site): sink_limit(file, sink_ratio) for site, file in files.items()}
        self.limits = {site: limit for site, limit in limits.items() if limit is not None}
        keep = kept_positions(store)
        self.rows_per_epoch = int(np.count_nonzero(keep))
        if not self.rows_per_epoch:
            raise MechstudyError(
                "no row is left to train on",
                where=str(store.folder),
                facts={"rows": f"{store.n_rows:,}, all at a first position"},
                fix="capture longer rows (context)",
            )
        named = {str(site): file for site, file in files.items()}
        self._rows = KeptRows(named, keep, seed, checksums=checksums_of(store, files.values(), verify))

    def batches(self, start: int = 0) -> Iterator[dict[str, Float[Tensor, "batch width"]]]:
        """Endless batches by site, from step ``start`` on: bf16 if they are stored as such, else float32."""
        yield from prefetched(self._rows.batches(start, self.batch_size), self.prefetch)


class StreamBatches:
    """Batches directly from forward passes: nothing is stored on disk, and one window of rows is held in memory.

    Documents are processed in a shuffled order, one window at a time. The window's rows, without first positions, are
    shuffled and cut into batches, so a batch mixes rows of one window only. A window should hold many more documents
    than a batch has rows of each; `mixing` measures that.

    Args:
        model: the model to run.
        token_rows: token ids, one document per row.
        sites: the sites to capture.
        batch_size: rows per batch.
        window_rows: rows held at a time (see ``nbytes``).
        seed: of both shuffles.
        sink_ratio: rows of a larger norm than this, relative to the median, count as sinks (``limits``).
        batch_tokens: tokens per forward pass.
        dtype: of the rows held.
    """

    def __init__(
        self,
        model: LanguageModel,
        token_rows: Int[Tensor, "documents t"],
        sites: Sequence[Site],
        batch_size: int,
        *,
        window_rows: int = 65_536,
        seed: int = 0,
        sink_ratio: float | None = SINK_RATIO,
        batch_tokens: int = 4096,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.model, self.tokens, self.sites, self.batch_size = model, token_rows, tuple(sites), batch_size
        self.seed, self.batch_tokens, self.dtype = seed, batch_tokens, dtype
        self.widths = {str(site): model.width(site) for site in self.sites}
        n_documents, context = token_rows.shape
        self._per_document = context - 1
        documents = max(1, min(n_documents, window_rows // self._per_document))
        self._documents = max(documents, -(-batch_size // self._per_document))
        self.steps_per_window = self._documents * self._per_document // batch_size
        self._window: tuple[int, dict[str, Tensor], Tensor] | None = None
        self.limits: dict[str, float] = {}
        if sink_ratio is not None:
            for site, rows in self._rows_of(0)[0].items():
                self.limits[site] = sink_ratio * float(torch.linalg.vector_norm(rows.float(), dim=1).median())

    @property
    def nbytes(self) -> int:
        """Bytes of one window."""
        rows = self._documents * self._per_document
        return rows * sum(self.widths.values()) * self.dtype.itemsize

    def batches(self, start: int = 0) -> Iterator[dict[str, Float[Tensor, "batch width"]]]:
        """Endless batches by site, from step ``start`` on."""
        step = start
        while True:
            window, within = divmod(step, self.steps_per_window)
            rows, _ = self._rows_of(window)
            part = slice(within * self.batch_size, (within + 1) * self.batch_size)
            yield {site: values[part] for site, values in rows.items()}
            step += 1

    def mixing(self, step: int = 0) -> float:
        """How well the batch of a step mixes documents (see `mixing.mixing`)."""
        window, within = divmod(step, self.steps_per_window)
        documents = self._rows_of(window)[1][within * self.batch_size : (within + 1) * self.batch_size]
        return mixing(documents, len(self.tokens))

    def _rows_of(self, window: int) -> tuple[dict[str, Tensor], Tensor]:
        """The window's shuffled rows by site, and the document of each."""
        if self._window is None or self._window[0] != window:
            self._window = None  # frees its memory before the next window is made
            self._window = (window, *self._make(window))
        return self._window[1], self._window[2]

    def _make(self, window: int) -> tuple[dict[str, Tensor], Tensor]:
        documents = self._documents_of(window)
        n_rows = len(documents) * self._per_document
        order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(_mixed(self.seed, 2, window)))
        rows = {site: torch.empty(n_rows, width, dtype=self.dtype) for site, width in self.widths.items()}
        place = torch.empty_like(order)
        place[order] = torch.arange(n_rows)  # row i of the window goes to place[i]
        done = 0
        for part in torch.split(documents, max(1, self.batch_tokens // self.tokens.shape[1])):
            activations = activations_at(self.model, self.tokens[part].long(), self.sites, NullProgress())
            size = len(part) * self._per_document
            for site, values in activations.items():
                kept = values.view(len(part), -1, values.shape[-1])[:, 1:].reshape(size, -1)
                rows[str(site)][place[done : done + size]] = kept.to("cpu", self.dtype)
            done += size
        return rows, documents.repeat_interleave(self._per_document)[order]

    def _documents_of(self, window: int) -> Tensor:
        """The documents of a window: consecutive ones of endless epochs, each with its own order."""
        n = len(self.tokens)
        first, parts = window * self._documents, []
        for epoch in range(first // n, (first + self._documents - 1) // n + 1):
            order = torch.randperm(n, generator=torch.Generator().manual_seed(_mixed(self.seed, 1, epoch)))
            low, high = max(0, first - epoch * n), min(n, first + self._documents - epoch * n)
            parts.append(order[low:high])
        return torch.cat(parts)


def _mixed(seed: int, purpose: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, purpose, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))
