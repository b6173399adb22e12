"""Effects of nodes measured by exact patching: each one alone is replaced, and everything else runs live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import DonorSource, Replacement
from mechstudy.circuits.effects_table import EffectsTable
from mechstudy.circuits.node_attribution import comparable
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
    parts = []
    for part in nodes.slices.values():
        keep_CN = torch.ones(part.stop - part.start + 1, n, dtype=torch.bool)
        keep_CN[1:, part].fill_diagonal_(False)  # the first circuit keeps all
        values_CP = keep_only_values(model, pairs, nodes, keep_CN, replacements, batch_tokens=batch_tokens)
        parts.append((values_CP[1:] - values_CP[0]).T)
    ids = tuple(pair.id for pair in pairs)
    return EffectsTable(nodes.nodes, torch.cat(parts, 1), ids, "patching", replace_by, nodes.positions)
