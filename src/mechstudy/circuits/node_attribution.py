"""Effects of nodes predicted by gradients: attribution patching, integrated gradients, relevance patching."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mechstudy.behaviours.contrast import contrasts
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import Replacement
from mechstudy.circuits.effects_table import EffectsTable, Gap, by_prompt
from mechstudy.circuits.exact_patterns import pattern_corrections
from mechstudy.circuits.held_path import midpoints
from mechstudy.circuits.recording import INPUTS, Batch, Recording
from mechstudy.circuits.relevance import relevance_rules
from mechstudy.circuits.site_gradients import contrast_values
from mechstudy.circuits.universe import NodeSet
from mechstudy.core.errors import MechstudyError
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.reading import merged
from mechstudy.models.sites import Site

METHODS = ("eap", "atp_qk", "eap_ig_inputs", "eap_ig_activations", "ig_nodes", "relp")


Sums = Mapping[str, tuple[Tensor, Tensor]]  # of effects, [B], with the changes that they should be
Effects = tuple[Tensor, Sums]  # [B, N]


def predict_effects(
    model: LanguageModel,
    nodes: NodeSet,
    pairs: Iterable[PromptPair],
    *,
    method: str = "eap_ig_inputs",
    replace_by: Replacement = "corrupted",
    discovery: Sequence[PromptPair] = (),
    steps: int = 5,
    seed: int = 0,
    batch_tokens: int = 4096,
    checkpointing: str = "auto",
    given: Sequence[int] = (),
    recording: Recording | None = None,
) -> EffectsTable:
    """The effect of replacing each node on the answers' contrast, (x' - x) . gradient, summed over its tokens.

    Methods: ``eap``, the gradient at the clean prompt (attribution patching, Nanda 2023; as nodes of edge attribution
    patching, Syed et al. 2310.10348). ``atp_qk``, the same with exact patterns where a head or MLP changes the queries
    and keys of later heads (`pattern_corrections`, after AtP*, Kramar et al. 2403.00745). ``eap_ig_inputs``, its mean
    along the straight path of the embeddings to their replacement (Hanna et al. 2403.17806), by the midpoint rule; the
    embeddings' own effects then add up to the change that replacing them makes, and the gap is reported.
    ``eap_ig_activations``, its mean along the path of the activations of the node's site, all nodes of the site
    together: these add up to the change that replacing the site makes. ``ig_nodes``, its mean along the path on which
    every node is replaced by the same growing share, what it holds computed in the running pass: the effects add up to
    the change that replacing all nodes makes, and so divide among nodes what keep-only runs measure (Aumann-Shapley
    values); a JumpReLU feature that goes off on the path adds to the gap what it writes at sites without error nodes.
    ``relp``, the gradient at the clean prompt under the rules of `relevance_rules`.

    All are gradients with respect to the share of a node that is replaced (`NodeSet.edits`).

    Args:
        model: the model.
        nodes: the nodes.
        pairs: the prompts.
        method: how effects are predicted.
        replace_by: what a node is replaced by (`DonorSource`).
        discovery: prompts that give means and resamples.
        steps: points of a path.
        seed: of resamples.
        batch_tokens: tokens run at a time.
        checkpointing: of gradients, as in `contrast_gradients`.
        given: numbers of nodes that are replaced already; effects are of others beside them, and theirs are 0. For the
            methods ``eap`` and ``ig_nodes``.
        recording: of these nodes, prompts and replacements, where several methods are asked for.

    Raises:
        MechstudyError: no prompts, whole answers to compare, no corrupted prompts where they are needed, an unknown
            method, or fewer than one step.
    """
    if method not in METHODS:
        raise MechstudyError(f"unknown method {method!r}", facts={"methods": ", ".join((*METHODS, "patching"))})
    if steps < 1:
        raise MechstudyError(f"steps: {steps} is no number of steps of a path", fix="steps=5")
    assert not given or method in ("eap", "ig_nodes"), method
    if recording is None:
        recording = Recording(
            model, nodes, pairs, replace_by, discovery=discovery, seed=seed, batch_tokens=batch_tokens
        )
    parts: list[Effects] = []
    for x in recording.batches(differing=method in ("eap", "eap_ig_inputs", "ig_nodes")):
        shares = _Shares(model, nodes, x, steps, checkpointing, tuple(given), batch_tokens)
        parts.append(getattr(shares, method)())
    numbers = recording.numbers
    gaps = [
        Gap(place, *(by_prompt(numbers, [sums[place][side] for _, sums in parts]) for side in (0, 1)))
        for place in parts[0][1]
    ]
    effects_PN = by_prompt(numbers, [effects for effects, _ in parts])
    ids = tuple(pair.id for pair in recording.pairs)
    return EffectsTable(nodes.nodes, effects_PN, ids, method, recording.replace_by, nodes.positions, tuple(gaps))


@dataclass(frozen=True)
class _Shares:
    """Gradients of a batch's contrasts with respect to shares of nodes that are replaced."""

    model: LanguageModel
    nodes: NodeSet
    x: Batch
    steps: int
    checkpointing: str
    given: tuple[int, ...]
    batch_tokens: int

    def eap(self) -> Effects:
        return self._gradient(0.0, live=bool(self.given)), {}

    def atp_qk(self) -> Effects:
        corrections_BN = pattern_corrections(self.model, self.nodes, self.x, self.checkpointing)
        return self._gradient(0.0) + corrections_BN.to(self.x.value_B.device), {}

    def relp(self) -> Effects:
        with relevance_rules(self.model, self.x.tokens_BT):
            return self.eap()

    def eap_ig_inputs(self) -> Effects:
        path = []
        for points in self._at_once():
            share_R = self.x.shares(points).requires_grad_()
            moved = {INPUTS: self.x.moved(INPUTS, share_R)}
            path.append(self._gradients([0.0] * len(points), share_R, edits=moved))
        effects_BN, inputs_B = (self._mean_of_points(parts) for parts in zip(*path, strict=True))
        return effects_BN, {"inputs": (inputs_B, self._change({INPUTS: self.x.moved(INPUTS, self.x.shares([1.0]))}))}

    def eap_ig_activations(self) -> Effects:
        parts, sums = [], {}
        starts = [Site("resid_pre", layer) for layer in sorted({site.layer for site in self.nodes.slices})]
        resid = self.model.forward(self.x.tokens_BT, capture=starts, logits_at=None).activations
        for site, part in self.nodes.slices.items():
            start = (site.layer, resid[Site("resid_pre", site.layer)])
            path = [self._gradient(share, start=start, sites=[site])[:, part] for share in midpoints(self.steps)]
            parts.append(_mean(path))
            measured_B = self._change(self._replacing([site]), start)
            sums[str(site)] = (parts[-1].sum(1), measured_B)
        return torch.cat(parts, 1), sums

    def ig_nodes(self) -> Effects:
        effects_BN = self._mean_of_points([self._gradients(points, live=True)[0] for points in self._at_once()])
        change_B = self._change(self._replacing())
        if self.given:
            change_B = change_B - self._change(self._replacing(only=self.given))
        return effects_BN, {"nodes": (effects_BN.sum(1), change_B)}

    def _at_once(self) -> list[list[float]]:
        """The points of a path, in parts that share a pass."""
        n, path = max(1, self.batch_tokens // self.x.tokens_BT.numel()), list(midpoints(self.steps))
        return [path[i : i + n] for i in range(0, self.steps, n)]

    def _mean_of_points(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.unflatten(torch.cat(list(parts)), 0, (self.steps, -1)).mean(0)

    def _gradient(self, share: float, **options: Any) -> Tensor:
        return self._gradients(share, **options)[0]

    @torch.enable_grad()
    def _gradients(
        self,
        shares: float | Sequence[float],
        *inputs: Tensor,
        live: bool = False,
        edits: Mapping[Site, Edit] | None = None,
        start: tuple[int, Tensor] | None = None,
        sites: Collection[Site] | None = None,
    ) -> list[Tensor]:
        """Gradients with respect to the nodes' shares and further inputs of a run with edits, in float64.

        Nodes of ``sites`` change by a share of the difference of donors and what they hold in the running pass
        (``live``), or in the clean one, whatever the edits. Rows are all prompts, once for each of ``shares``.
        """
        model, x = self.model, self.x
        of_copy = [shares] if isinstance(shares, float) else list(shares)
        n = len(of_copy)
        share_C = torch.tensor(of_copy, dtype=model.dtype, device=model.device)
        share_BN = share_C.repeat_interleave(len(x.tokens_BT))[:, None].repeat(1, len(self.nodes.nodes))
        share_BN[:, list(self.given)] = 1.0
        share_BN.requires_grad_()
        donors = replace(x.donors, relative_to=None) if live else x.donors
        of_nodes = self.nodes.edits(share_BN, donors, sites)
        tokens_BT, of_row = x.tokens_BT.repeat(n, 1), list(x.of_row) * n
        values = contrast_values(model, tokens_BT, of_row, start, self.checkpointing, x.prefix.cache(n))
        value_B = values(merged([edits or {}, of_nodes]))
        gradients = torch.autograd.grad(value_B.sum(), [share_BN, *inputs], materialize_grads=True)
        found = [gradient.double() for gradient in gradients]
        found[0][:, list(self.given)] = 0.0
        return found

    def _replacing(self, sites: Collection[Site] | None = None, only: Sequence[int] = ()) -> dict[Site, Edit]:
        """Edits that replace all nodes, or ``only`` some, of all or some sites."""
        which = torch.ones(len(self.x.tokens_BT), len(self.nodes.nodes), dtype=torch.bool)
        if only:
            which = torch.zeros_like(which)
            which[:, list(only)] = True
        return self.nodes.edits(which, replace(self.x.donors, relative_to=None), sites)

    @torch.no_grad()
    def _change(self, edits: Mapping[Site, Edit], start: tuple[int, Tensor] | None = None) -> Tensor:
        """The change of the contrasts of a run with edits."""
        logits = self.model.forward(self.x.tokens_BT, edits=edits, start=start, cache=self.x.prefix.cache()).logits
        assert logits is not None
        return contrasts(logits, self.x.of_row) - self.x.value_B


def _mean(path: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(path)).mean(0)
