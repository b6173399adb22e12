"""Effects of nodes measured by exact patching: each one alone is replaced, and everything else runs live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import DonorSource, Replacement
from mechstudy.circuits.effects_table import EffectsTable
from mechstudy.circuits.named_positions import aligned
from mechstudy.circuits.recording import comparable
from mechstudy.circuits.universe import NodeSet
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.models.language_model import LanguageModel


def measure_effects(
    model: LanguageModel,
    nodes: NodeSet,
    pairs: Iterable[PromptPair],
    *,
    replace_by: Replacement = "corrupted",
    discovery: Sequence[PromptPair] = (),
    seed: int = 0,
    batch_tokens: int = 4096,
) -> EffectsTable:
    """The change of the answers' contrast when each node alone is replaced: a forward pass of each.

    A node that holds the same in the clean and the corrupted run, since nothing before it differs, has an effect of 0.

    Args:
        model: the model.
        nodes: the nodes.
        pairs: the prompts.
        replace_by: what a node is replaced by (`circuits.DonorSource`).
        discovery: prompts that give means and resamples; by default the pairs.
        seed: of resamples.
        batch_tokens: tokens run at a time.

    Raises:
        MechstudyError: as `circuits.predict_effects`.
    """
    pairs = comparable(pairs)
    replacements = DonorSource(
        model, [nodes], replace_by, nodes.positions, discovery or pairs, seed=seed, batch_tokens=batch_tokens
    )
    n = len(nodes.nodes)
    differs_PN = _differs(pairs, nodes) if replace_by == "corrupted" else torch.ones(len(pairs), n, dtype=torch.bool)
    effects_PN = torch.zeros(len(pairs), n, dtype=torch.float64)
    for part in nodes.slices.values():
        patched = part.start + differs_PN[:, part].any(0).nonzero()[:, 0]
        if not len(patched):
            continue
        keep_CN = torch.ones(len(patched) + 1, n, dtype=torch.bool)  # the first circuit keeps all
        keep_CN[torch.arange(1, len(keep_CN)), patched] = False
        values_CP = keep_only_values(model, pairs, nodes, keep_CN, replacements, batch_tokens=batch_tokens)
        effects_PN[:, patched] = (values_CP[1:] - values_CP[0]).T
    effects_PN = effects_PN.where(differs_PN, 0)
    return EffectsTable(
        nodes.nodes, effects_PN, tuple(pair.id for pair in pairs), "patching", replace_by, nodes.positions
    )


def _differs(pairs: Sequence[PromptPair], nodes: NodeSet) -> Bool[Tensor, "p n"]:
    """Whether a node is at a token where the corrupted run can hold something else.

    Without this, the rounding of batches of other shapes would be taken for an effect.
    """
    name_N = torch.tensor([nodes.positions.names.index(node.position) for node in nodes.nodes])
    rows = []
    for pair in map(aligned, pairs):
        number_T = nodes.positions.numbers([pair])[0]
        rows.append(torch.isin(name_N, number_T[torch.tensor(pair.may_differ)]))
    return torch.stack(rows)
