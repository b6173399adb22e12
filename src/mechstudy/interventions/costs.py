"""How many forward passes a study's interventions are. Torch-free."""

from __future__ import annotations

from mechstudy.core.errors import MechstudyError
from mechstudy.core.work import Work
from mechstudy.interventions.config import InterventionConfig
from mechstudy.models.shapes import ModelShapes
from mechstudy.models.sites import parse_layers


def forwards_of(i: InterventionConfig, samples: int, n_layers: int, positions: int) -> tuple[int, int]:
    """Edited forward passes of features, and of the patching grid with ``positions`` named positions.

    Features: every policy on each group and its controls, the sham, and steering.
    """
    policies = len(i.ablations) * ("ablation" in i.kinds) + i.resample_draws * ("resampling" in i.kinds)
    policies += "patching" in i.kinds
    per_pair = policies * i.n_groups * (1 + i.n_controls) + 1
    if "steering" in i.kinds:
        per_pair += len(i.alphas) * (2 + i.n_controls)
    grid = 0
    if "patching" in i.kinds:
        grid = min(i.patching.n_pairs, samples) * len(_grid_layers(i, n_layers)) * positions
    return samples * per_pair, grid


def edges_work(i: InterventionConfig, x: ModelShapes, prompts: int, tokens: int) -> list[Work]:
    """Edges of both kinds on each of their prompts: the source replaced in the whole model, and with nodes held.

    With nodes held only attention is computed, three times; runs begin at the source's layer, half-way. Predictions
    take a backward pass of every target, and of its scores.
    """
    edges = 2 * i.n_edges * prompts
    attention = 2.0 * x.d_model * x.head_dim * (2 * x.n_heads + 2 * x.n_kv_heads) * x.n_layers
    rows = edges * tokens * 2.0 * x.d_model * x.head_dim * (x.n_heads + x.n_kv_heads) * x.n_layers
    whole = edges * tokens * 2.0 * x.n_block_parameters / 2
    logits = 2.0 * edges * x.vocab_size * x.d_model
    return [
        Work("forward", whole + logits, "float32", x.d_model, 2.0 * prompts * x.n_layers),
        Work("forward", 3 * edges * tokens * attention / 2, "float32", x.d_model, 6.0 * prompts * x.n_layers),
        Work("attribute", 3 * rows / 2, "float32", x.d_model, 3.0 * prompts * x.n_layers),
    ]


def _grid_layers(i: InterventionConfig, n_layers: int) -> tuple[int, ...]:
    try:
        return parse_layers(i.patching.layers, n_layers)
    except MechstudyError as error:
        where = "interventions.patching.layers"
        raise MechstudyError(error.what, where=where, facts=error.facts, fix=error.fix) from None
