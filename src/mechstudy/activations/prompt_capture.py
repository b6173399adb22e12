"""Captures the activations of prompts into a store: selected positions, in the order of the prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from mechstudy.activations.capture import activations_at
from mechstudy.activations.config import Positions
from mechstudy.activations.quota import Quota
from mechstudy.activations.store import Store
from mechstudy.activations.writer import StoreWriter
from mechstudy.behaviours.schema import PromptPair
from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.models.batches import length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site
from mechstudy.store.checkpoint import load_checkpoint, save_checkpoint

DOCUMENTS_FILE = "documents.jsonl"
VERSIONS = ("clean", "corrupted")


@dataclass(frozen=True)
class PromptBatches:
    """Prompts to capture: their tokens, their selected positions, and their batches.

    Documents are numbered as in `capture_prompts`. The rows of prompt i begin at ``firsts[i]``.
    """

    pairs: Sequence[PromptPair]
    documents: Sequence[int]
    prompts: Sequence[Sequence[int]]
    chosen: Sequence[NDArray[np.int64]]
    batches: Sequence[Sequence[int]]

    @classmethod
    def of(
        cls, pairs: Sequence[PromptPair], positions: Positions, versions: Sequence[str], batch_tokens: int
    ) -> PromptBatches:
        """The clean and corrupted prompts of pairs, or those of one of the two versions.

        Raises:
            MechstudyError: no prompts, or a prompt without one of the positions (its pair is named).
        """
        if not pairs or not versions:
            raise MechstudyError("there are no prompts to capture")
        documents, prompts, chosen = [], [], []
        for number, pair in enumerate(pairs):
            for offset, tokens in enumerate((pair.clean_tokens, pair.corrupted_tokens)):
                if VERSIONS[offset] not in versions or not tokens:
                    continue
                documents.append(2 * number + offset)
                prompts.append(tokens)
                chosen.append(_chosen(pair, positions, len(tokens), _named(pair, VERSIONS[offset])))
        return cls(pairs, documents, prompts, chosen, length_buckets([len(tokens) for tokens in prompts], batch_tokens))

    @property
    def firsts(self) -> NDArray[np.int64]:
        """First row of each prompt in the store, and the number of all rows."""
        return np.concatenate([[0], np.cumsum([len(c) for c in self.chosen])]).astype(np.int64)

    def tokens(self, members: Sequence[int]) -> Int[Tensor, "b t"]:
        """Token ids of one batch."""
        return torch.tensor([self.prompts[i] for i in members])

    def places(self, members: Sequence[int]) -> NDArray[np.int64]:
        """Indices of the selected positions in the batch's flattened rows [B * T]."""
        length = len(self.prompts[members[0]])
        return np.concatenate([row * length + self.chosen[i] for row, i in enumerate(members)])

    def rows(
        self, model: LanguageModel, members: Sequence[int], sites: Sequence[Site], progress: Progress
    ) -> dict[Site, Float[Tensor, "rows width"]]:
        """The batch's selected rows at every site, on the model's device."""
        places = torch.from_numpy(self.places(members))
        activations = activations_at(model, self.tokens(members), sites, progress)
        return {site: values[places.to(values.device)] for site, values in activations.items()}

    def file(self, kept: Path, members: Sequence[int]) -> Path:
        """The file in ``kept`` that holds a batch's rows."""
        return kept / f"{len(self.prompts[members[0]])}-{members[0]}-{len(members)}.safetensors"


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
    kept: Path | None = None,
) -> Store:
    """Captures selected positions of clean and corrupted prompts, pair by pair, clean before corrupted.

    Document ``2 * i`` is the clean prompt of pair i and ``2 * i + 1`` the corrupted one; ``documents.jsonl`` holds
    their ids, first rows and named positions.

    Args:
        model: the model to run.
        pairs: prompt pairs tokenised for this model.
        sites: the sites to capture.
        positions: the positions to capture.
        folder: where the store is written.
        versions: ``clean``, ``corrupted`` or both.
        dtype: of stored rows.
        batch_tokens: tokens per forward pass.
        progress: reports prompts.
        quota: limit on the bytes of the run's files.
        kept: folder of batches that `keep_prompts` has captured; these are read, not captured again.

    Raises:
        MechstudyError: a prompt without one of the positions (its pair is named), or not enough room.
    """
    progress = progress or NullProgress()
    plan = PromptBatches.of(pairs, positions, versions, batch_tokens)
    firsts = plan.firsts
    writer = StoreWriter(
        folder, {site: model.width(site) for site in sites}, int(firsts[-1]), dtype, shuffle=False, quota=quota
    )
    _write_documents(folder / DOCUMENTS_FILE, pairs, plan.documents, [len(p) for p in plan.prompts], firsts)
    with progress.bar("capture", len(plan.prompts), "prompts") as bar:
        for members in plan.batches:
            saved = load_checkpoint(plan.file(kept, members)) if kept else None
            if saved is None:
                rows = plan.rows(model, members, sites, progress)
            else:
                rows = {site: saved[0][str(site)] for site in sites}
            places, tokens_BT = plan.places(members), plan.tokens(members)
            writer.put(
                np.concatenate([firsts[i] + np.arange(len(plan.chosen[i])) for i in members]),
                rows,
                np.concatenate([np.full(len(plan.chosen[i]), plan.documents[i]) for i in members]),
                places % tokens_BT.shape[1],
                tokens_BT.flatten()[torch.from_numpy(places)],
            )
            bar.advance(len(members))
    return writer.close()


def keep_prompts(
    model: LanguageModel,
    plan: PromptBatches,
    sites: Sequence[Site],
    kept: Path,
    rank: int,
    size: int,
    progress: Progress,
) -> None:
    """One of ``size`` processes' share of `capture_prompts`: captures every size-th batch into files in ``kept``."""
    mine = plan.batches[rank::size]
    with progress.bar("prompts", sum(map(len, mine)), "prompts") as bar:
        for members in mine:
            if not (file := plan.file(kept, members)).exists():
                rows = plan.rows(model, members, sites, progress)
                save_checkpoint(file, {str(site): values for site, values in rows.items()}, {})
            bar.advance(len(members))


def _named(pair: PromptPair, version: str) -> Mapping[str, int]:
    """Token index of each named position in one version of the prompt."""
    if version == "corrupted" and pair.corrupted_positions is not None:
        return pair.corrupted_positions
    return pair.positions


def _chosen(pair: PromptPair, positions: Positions, length: int, named: Mapping[str, int]) -> NDArray[np.int64]:
    try:
        return np.array(positions.resolve(named, length), dtype=np.int64)
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
                "positions": dict(_named(pair, VERSIONS[document % 2])),
            }
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
