"""Activation patching: the corrupted run's activation written into the clean run, by layer and named position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import DonorSource, SiteValues
from mechstudy.circuits.named_positions import AlignedPrompt, NamedPositions
from mechstudy.interventions.engine import ReplaceVector
from mechstudy.interventions.features import positions_named
from mechstudy.models.batches import length_buckets
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


@dataclass(frozen=True)
class Donor:
    """Activations of other prompts by token of each pair's clean prompt: ``at[pair id, site]`` is [T, D].

    ``has[pair id]`` marks the tokens that have one.
    """

    at: dict[tuple[str, Site], Tensor]
    has: dict[str, list[bool]]

    def edits(self, pair: PromptPair, name: str, site: Site) -> list[ReplaceVector]:
        """Write the donor's activation into ``pair`` at a named position; no edit where one of them has none."""
        places = [at for at in positions_named(pair, name) if self.has[pair.id][at]]
        return [ReplaceVector(site, at, self.at[pair.id, site][at]) for at in places]


def donor(
    model: LanguageModel,
    pairs: Sequence[PromptPair],
    sites: Sequence[Site],
    *,
    corrupted: bool = True,
    batch_tokens: int = 4096,
) -> Donor:
    """Activations of each pair's corrupted prompt (or its clean one: a sham) at sites."""
    prompts = [AlignedPrompt.of_pair(pair) for pair in pairs]
    if not corrupted:
        prompts = [replace(p, corrupted=p.tokens, corrupted_at=tuple(range(len(p.tokens)))) for p in prompts]
    source = DonorSource(
        model, [SiteValues(tuple(sites))], "corrupted", NamedPositions.whole(), batch_tokens=batch_tokens
    )
    at: dict[tuple[str, Site], Tensor] = {}
    has: dict[str, list[bool]] = {}
    for batch in length_buckets([len(prompt.tokens) for prompt in prompts], batch_tokens):
        donors = source.donors([prompts[i] for i in batch])
        for b, i in enumerate(batch):
            has[pairs[i].id] = donors.has_BT[b].tolist()
            at |= {(pairs[i].id, site): donors.values[site][b] for site in sites}
    return Donor(at, has)
