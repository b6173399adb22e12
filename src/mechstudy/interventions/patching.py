"""Activation patching: the corrupted run's activation written into the clean run, by layer and named position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import require_corrupted
from mechstudy.interventions.engine import ReplaceVector
from mechstudy.interventions.features import positions_named
from mechstudy.models.batches import captured, length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


@dataclass(frozen=True)
class Donor:
    """Activations of other prompts: ``at[pair id, position name, site]`` is [n positions of that name, D]."""

    at: dict[tuple[str, str, Site], Tensor]
    corrupted: bool = True

    def edits(self, pair: PromptPair, name: str, site: Site) -> list[ReplaceVector]:
        """Write the donor's activation into ``pair`` at a named position; no edit where one of them has none."""
        places = _places(pair, name, self.corrupted)
        if not places:
            return []
        return [ReplaceVector(site, p, v) for p, v in zip(places, self.at[pair.id, name, site], strict=True)]


def _places(pair: PromptPair, name: str, corrupted: bool) -> dict[int, int]:
    """The donor's token index for each index of the clean prompt that ``name`` means and the donor has too."""
    there = {at: pair.corrupted_at(at) if corrupted else at for at in positions_named(pair, name)}
    return {at: donor for at, donor in there.items() if donor is not None}


def donor(
    model: LanguageModel,
    pairs: Sequence[PromptPair],
    sites: Sequence[Site],
    names: Sequence[str],
    *,
    corrupted: bool = True,
    batch_tokens: int = 4096,
) -> Donor:
    """Activations of each pair's corrupted prompt (or its clean one: a sham) at sites and named positions."""
    if corrupted:
        require_corrupted(pairs)
    rows = [p.corrupted_tokens if corrupted else p.clean_tokens for p in pairs]
    at: dict[tuple[str, str, Site], Tensor] = {}
    for batch in length_buckets([len(r) for r in rows], batch_tokens):
        tokens_BT = torch.tensor([rows[i] for i in batch])
        activations = captured(model, tokens_BT, sites)
        for b, i in enumerate(batch):
            for name in names:
                places = list(_places(pairs[i], name, corrupted).values())
                if places:
                    at.update({(pairs[i].id, name, site): activations[site][b, places].clone() for site in sites})
    return Donor(at, corrupted)
