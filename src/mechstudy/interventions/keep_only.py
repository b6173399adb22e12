"""Keep-only runs: every node outside of a circuit is replaced, and the rest of the model runs live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import Donors, DonorSource, Key
from mechstudy.circuits.effects_table import by_prompt
from mechstudy.circuits.node_attribution import ScoredNodes
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.batches import captured, length_buckets
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.sites import Site


@runtime_checkable
class NodeSet(ScoredNodes, Protocol):
    """Nodes that can be kept or replaced, such as `circuits.Components` and `FeatureNodes`."""

    def edits(self, replaced_CN: Bool[Tensor, "c n"], donors: Donors) -> dict[Site, Edit]:
        """Edits that replace nodes by the donors', for rows of every circuit with all prompts, circuit by circuit.

        What is replaced is computed from the running pass; no edit for a site where no circuit replaces anything.
        """


class NodeSets:
    """Several sets of nodes at the same positions as one, in order; no two may write at one site.

    Raises:
        MechstudyError: two sets write at one site, or positions differ.
    """

    def __init__(self, sets: Sequence[NodeSet]) -> None:
        self._sets = tuple(sets)
        self.nodes: tuple[Any, ...] = tuple(node for one in sets for node in one.nodes)
        self.reads: tuple[Site, ...] = tuple(dict.fromkeys(site for one in sets for site in one.reads))
        self.positions = sets[0].positions
        self.slices: dict[Site, slice] = {}
        self._of_site: dict[Site, NodeSet] = {}
        first = 0
        for one in sets:
            if one.positions != self.positions:
                raise MechstudyError("two sets of nodes have other positions", fix="one NamedPositions for all")
            if both := self.slices.keys() & one.slices.keys():
                raise MechstudyError(
                    f"two sets of nodes change {min(both)}",
                    fix="no MLP components in layers whose features or errors are nodes",
                )
            self.slices |= {site: slice(first + x.start, first + x.stop) for site, x in one.slices.items()}
            self._of_site |= dict.fromkeys(one.slices, one)
            first += len(one.nodes)

    def values(self, activations: Mapping[Site, Tensor]) -> dict[Key, Tensor]:
        """The values of all sets."""
        return {key: value for one in self._sets for key, value in one.values(activations).items()}

    def effects(self, site: Site, differences: Mapping[Key, Tensor], gradient_BTW: Tensor, donors: Donors) -> Tensor:
        """Those of the set that writes at the site."""
        return self._of_site[site].effects(site, differences, gradient_BTW, donors)

    def change(self, site: Site, differences: Mapping[Key, Tensor]) -> Tensor:
        """That of the set that writes at the site."""
        return self._of_site[site].change(site, differences)

    def edits(self, replaced_CN: Bool[Tensor, "c n"], donors: Donors) -> dict[Site, Edit]:
        """The edits of all sets."""
        parts = torch.split(replaced_CN, [len(one.nodes) for one in self._sets], 1)
        of_sets = [one.edits(part_CN, donors) for one, part_CN in zip(self._sets, parts, strict=True)]
        return {site: edit for edits in of_sets for site, edit in edits.items()}


@torch.no_grad()
def keep_only_values(
    model: LanguageModel,
    pairs: Sequence[PromptPair],
    nodes: NodeSet,
    keep_CN: Bool[Tensor, "c n"],
    replacements: DonorSource,
    *,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> Float64[Tensor, "c p"]:
    """The answers' contrast of each pair's clean prompt when each circuit is kept and every other node replaced.

    Circuits and prompts of one length share batches, which start at the lowest replaced layer. Whatever is kept
    computes from what reaches it; keeping every node changes no bit of the logits.

    Args:
        model: the model.
        pairs: the prompts.
        nodes: the universe that circuits are parts of.
        keep_CN: the nodes that each circuit keeps.
        replacements: of the nodes' values.
        batch_tokens: tokens run at a time, at least one circuit on one prompt.
        progress: receives messages.

    Raises:
        MechstudyError: a pair without a corrupted prompt, if they are the donors.
    """
    assert keep_CN.shape[1] == len(nodes.nodes), (keep_CN.shape, len(nodes.nodes))
    batches = length_buckets([len(pair.clean_tokens) for pair in pairs], batch_tokens)
    parts = []
    for batch in batches:
        rows = _Rows(model, [pairs[i] for i in batch], nodes, keep_CN, replacements)
        n_tokens = rows.tokens_BT.numel()
        size = max(1, min(len(keep_CN), batch_tokens // n_tokens))
        parts.append(oom_backoff(rows.values, size, progress or NullProgress(), item_tokens=n_tokens).T)
    return by_prompt(batches, parts).T


class _Rows:
    """All circuits on prompts of one length."""

    def __init__(
        self,
        model: LanguageModel,
        pairs: Sequence[PromptPair],
        nodes: NodeSet,
        keep_CN: Tensor,
        replacements: DonorSource,
    ) -> None:
        self._model, self._nodes, self._keep_CN = model, nodes, keep_CN
        self.tokens_BT = torch.tensor([pair.clean_tokens for pair in pairs])
        self._of_row = [Contrast.of_pair(pair) for pair in pairs]
        self._donors = replacements.donors(pairs)
        self._start = self._lowest()

    def _lowest(self) -> tuple[int, Tensor] | None:
        """The lowest layer that some circuit changes, and the residual stream that enters it; None for the first."""
        changed = self._nodes.edits((~self._keep_CN).any(0, keepdim=True), self._donors)
        layer = min((site.layer for site in changed), default=0)
        if layer == 0:
            return None
        below = Site("resid_post", layer - 1)
        return layer, captured(self._model, self.tokens_BT, [below])[below]

    def values(self, size: int) -> Tensor:
        """The contrast [C, B], at most ``size`` circuits at a time.

        All batches have one shape, filled up with the last circuit, so that equal circuits give equal bits.
        """
        circuits = len(self._keep_CN)
        even = ceil(circuits / ceil(circuits / size))
        filled_CN = self._keep_CN[torch.arange(even * ceil(circuits / even)).clamp(max=circuits - 1)]
        return torch.cat([self._of(keep_CN) for keep_CN in torch.split(filled_CN, even)])[:circuits]

    def _of(self, keep_CN: Tensor) -> Tensor:
        n = len(keep_CN)
        out = self._model.forward(
            self.tokens_BT.repeat(n, 1),
            edits=self._nodes.edits(~keep_CN, self._donors),
            start=None if self._start is None else (self._start[0], self._start[1].repeat(n, 1, 1)),
        )
        assert out.logits is not None
        return torch.unflatten(contrasts(out.logits, self._of_row * n), 0, (n, -1))
