"""Effects of nodes predicted by gradients: attribution patching, integrated gradients, relevance patching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.behaviours.prompts import checked_pairs
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import Donors, DonorSource, Key, Recorded, Replacement, SiteValues
from mechstudy.circuits.effects_table import EffectsTable, Gap, by_prompt
from mechstudy.circuits.held_path import midpoints
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.relevance import relevance_rules
from mechstudy.circuits.site_gradients import contrast_gradients
from mechstudy.core.errors import MechstudyError
from mechstudy.models.batches import length_buckets
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.sites import Site

METHODS = ("eap", "eap_ig_inputs", "eap_ig_activations", "relp")
INPUTS = Site("resid_pre", 0)  # the embeddings, which the path of inputs leads through


@runtime_checkable
class ScoredNodes(Recorded, Protocol):
    """Nodes that write at sites, such as `Components`."""

    @property
    def nodes(self) -> tuple[Any, ...]:
        """The nodes, which print as their names."""

    @property
    def slices(self) -> Mapping[Site, slice]:
        """The nodes that write at each site; together all nodes in order."""

    @property
    def positions(self) -> NamedPositions:
        """The positions that nodes are at."""

    def effects(self, site: Site, differences: Mapping[Key, Tensor], gradient_BTW: Tensor, donors: Donors) -> Tensor:
        """What (donor - clean value) x gradient says of a site's nodes, [B, n], in float64."""

    def change(self, site: Site, differences: Mapping[Key, Tensor]) -> Tensor:
        """The change of a site, [B, T, width], when all of its nodes are replaced."""


@dataclass(frozen=True)
class Batch:
    """Clean prompts of one length, their activations, and how donors' values differ from theirs."""

    tokens_BT: Tensor
    of_row: Sequence[Contrast]
    value_B: Tensor
    clean: Mapping[Site, Tensor]
    differences: Mapping[Key, Tensor]
    donors: Donors

    def moved(self, site: Site, change_BTW: Tensor) -> Edit:
        """Writes the clean activations over a site, with a change where there are donors."""
        x = self.clean[site]
        has = self.donors.has_BT[..., None].to(x.device)
        moved = torch.where(has, x + change_BTW, x)
        return lambda _: moved


Effects = tuple[Tensor, Mapping[str, tuple[Tensor, Tensor]]]  # [B, N], and sums with the changes they should be


def predict_effects(
    model: LanguageModel,
    nodes: ScoredNodes,
    pairs: Iterable[PromptPair],
    *,
    method: str = "eap_ig_inputs",
    replace_by: Replacement = "corrupted",
    discovery: Sequence[PromptPair] = (),
    steps: int = 5,
    seed: int = 0,
    batch_tokens: int = 4096,
    checkpointing: str = "auto",
) -> EffectsTable:
    """The effect of replacing each node on the answers' contrast, (x' - x) . gradient, summed over its tokens.

    Methods: ``eap``, the gradient at the clean prompt (attribution patching, Nanda 2023; as nodes of edge attribution
    patching, Syed et al. 2310.10348). ``eap_ig_inputs``, its mean along the straight path of the embeddings to their
    replacement (Hanna et al. 2403.17806), by the midpoint rule; the embeddings' own effects then add up to the change
    that replacing them makes, and the gap is reported. ``eap_ig_activations``, its mean along the path of the
    activations of the node's site, all nodes of the site together: these add up to the change that replacing the site
    makes. ``relp``, the gradient at the clean prompt under the rules of `relevance_rules`.

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

    Raises:
        MechstudyError: no prompts, whole answers to compare, no corrupted prompts where they are needed, an unknown
            method, or fewer than one step.
    """
    if method not in METHODS:
        raise MechstudyError(f"unknown method {method!r}", facts={"methods": ", ".join((*METHODS, "patching"))})
    if steps < 1:
        raise MechstudyError(f"steps: {steps} is no number of steps of a path", fix="steps=5")
    pairs = comparable(pairs)
    of_method: Callable[[LanguageModel, ScoredNodes, Batch, int, str], Effects] = {
        "eap": _eap,
        "eap_ig_inputs": _ig_inputs,
        "eap_ig_activations": _ig_activations,
        "relp": _relp,
    }[method]
    replacements = DonorSource(
        model,
        [nodes, SiteValues((INPUTS,))],
        replace_by,
        nodes.positions,
        discovery or pairs,
        seed=seed,
        batch_tokens=batch_tokens,
    )
    recorded: list[Recorded] = [nodes, SiteValues((INPUTS, *nodes.slices))]
    batches = length_buckets([len(pair.clean_tokens) for pair in pairs], batch_tokens)
    parts: list[Effects] = []
    for batch in batches:
        x = batch_of(model, [pairs[i] for i in batch], recorded, replacements)
        parts.append(of_method(model, nodes, x, steps, checkpointing))
    gaps = [
        Gap(place, *(by_prompt(batches, [sums[place][side] for _, sums in parts]) for side in (0, 1)))
        for place in parts[0][1]
    ]
    effects_PN = by_prompt(batches, [effects for effects, _ in parts])
    ids = tuple(pair.id for pair in pairs)
    return EffectsTable(nodes.nodes, effects_PN, ids, method, replace_by, tuple(gaps))


def comparable(pairs: Iterable[PromptPair]) -> list[PromptPair]:
    """The pairs as a list.

    Raises:
        MechstudyError: there are none, or one compares whole answers.
    """
    listed = checked_pairs(pairs)
    if (whole := next((pair for pair in listed if pair.whole_answers), None)) is not None:
        raise MechstudyError(
            f"prompt {whole.id} compares whole answers, and components are compared at the next token",
            fix='answers whose first tokens differ, and answer_tokens="first"',
        )
    return listed


@torch.no_grad()
def batch_of(
    model: LanguageModel, pairs: Sequence[PromptPair], recorded: Sequence[Recorded], replacements: DonorSource
) -> Batch:
    """Pairs of one length: what is recorded on their clean prompts, and how the donors differ."""
    tokens_BT = torch.tensor([pair.clean_tokens for pair in pairs])
    of_row = [Contrast.of_pair(pair) for pair in pairs]
    sites = list(dict.fromkeys(site for one in recorded for site in one.reads))
    out = model.forward(tokens_BT, capture=sites)
    assert out.logits is not None
    donors = replacements.donors(pairs)
    clean = {key: value for one in recorded for key, value in one.values(out.activations).items()}
    differences = {key: donors.values[key].to(value) - value for key, value in clean.items() if key in donors.values}
    return Batch(tokens_BT, of_row, contrasts(out.logits, of_row), out.activations, differences, donors)


def _eap(model: LanguageModel, nodes: ScoredNodes, x: Batch, steps: int, checkpointing: str) -> Effects:
    at = contrast_gradients(model, x.tokens_BT, x.of_row, list(nodes.slices), checkpointing=checkpointing).at
    return _effects(nodes, x, at), {}


def _relp(model: LanguageModel, nodes: ScoredNodes, x: Batch, steps: int, checkpointing: str) -> Effects:
    with relevance_rules(model, x.tokens_BT):
        return _eap(model, nodes, x, steps, checkpointing)


def _ig_inputs(model: LanguageModel, nodes: ScoredNodes, x: Batch, steps: int, checkpointing: str) -> Effects:
    sites = (INPUTS, *nodes.slices)
    change_BTD = x.differences[INPUTS]
    mean: dict[Site, Tensor] = {}
    for share in midpoints(steps):
        edits = {INPUTS: x.moved(INPUTS, share * change_BTD)}
        at = contrast_gradients(model, x.tokens_BT, x.of_row, sites, edits=edits, checkpointing=checkpointing).at
        mean = {site: mean.get(site, 0) + g / steps for site, g in at.items()}
    has = x.donors.has_BT[..., None].to(change_BTD.device)
    summed_B = (change_BTD * mean[INPUTS] * has).double().sum((1, 2))
    measured_B = _value(model, x, {INPUTS: x.moved(INPUTS, change_BTD)}) - x.value_B
    return _effects(nodes, x, mean), {"inputs": (summed_B, measured_B)}


def _ig_activations(model: LanguageModel, nodes: ScoredNodes, x: Batch, steps: int, checkpointing: str) -> Effects:
    parts, sums = [], {}
    starts = [Site("resid_pre", layer) for layer in sorted({site.layer for site in nodes.slices})]
    resid = model.forward(x.tokens_BT, capture=starts, logits_at=None).activations
    for site in nodes.slices:
        start = (site.layer, resid[Site("resid_pre", site.layer)])
        change_BTW = nodes.change(site, x.differences)
        mean = torch.zeros_like(change_BTW)
        for share in midpoints(steps):
            edits = {site: x.moved(site, share * change_BTW)}
            gradients = contrast_gradients(
                model, x.tokens_BT, x.of_row, [site], edits=edits, start=start, checkpointing=checkpointing
            )
            mean += gradients.at[site] / steps
        effects_BN = nodes.effects(site, x.differences, mean, x.donors)
        parts.append(effects_BN)
        measured_B = _value(model, x, {site: x.moved(site, change_BTW)}, start) - x.value_B
        sums[str(site)] = (effects_BN.sum(1), measured_B)
    return torch.cat(parts, 1), sums


def _effects(nodes: ScoredNodes, x: Batch, gradients: Mapping[Site, Tensor]) -> Tensor:
    return torch.cat([nodes.effects(site, x.differences, gradients[site], x.donors) for site in nodes.slices], 1)


@torch.no_grad()
def _value(
    model: LanguageModel, x: Batch, edits: Mapping[Site, Edit], start: tuple[int, Tensor] | None = None
) -> Tensor:
    logits = model.forward(x.tokens_BT, edits=edits, start=start).logits
    assert logits is not None
    return contrasts(logits, x.of_row)
