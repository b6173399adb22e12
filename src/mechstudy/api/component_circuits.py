"""Circuits of heads, MLPs and features: effects of replacing each, and what the strongest of them do alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mechstudy.behaviours.prompts import checked_pairs
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.bases import chosen_bases
from mechstudy.circuits.config import BasisKind
from mechstudy.circuits.donors import DonorSource, Replacement
from mechstudy.circuits.effects_table import EffectsTable
from mechstudy.circuits.named_positions import ALL, NamedPositions
from mechstudy.circuits.node_attribution import predict_effects
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.fitted import all_fitted
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.faithfulness import FaithfulnessCurve, faithfulness_curve
from mechstudy.interventions.feature_nodes import active_at
from mechstudy.interventions.node_patching import measure_effects
from mechstudy.interventions.node_universe import node_set, node_set_of
from mechstudy.models.language_model import LanguageModel


def components(
    model: LanguageModel,
    pairs: Iterable[PromptPair],
    *,
    dictionaries: Mapping[int, Basis] | None = None,
    basis: BasisKind | None = None,
    errors: bool = False,
    heads: bool = True,
    mlps: bool = True,
    method: str = "eap_ig_inputs",
    replace_by: Replacement = "corrupted",
    positions: str = "named",
    discovery: Sequence[PromptPair] = (),
    steps: int = 5,
    seed: int = 0,
    batch_tokens: int = 4096,
) -> EffectsTable:
    """Effects of replacing each attention head, MLP and feature on the answers' contrast.

        effects = ms.components(model, pairs)  # pairs of ms.load_prompts
        effects = ms.components(model, pairs, dictionaries=dicts, errors=True)
        effects.top(10)  # head.23.3@last, mlp.12@last, f.14.230@subject, ...

    Args:
        model: the model.
        pairs: prompt pairs.
        dictionaries: transcoders, cross-layer transcoders or SAEs by layer. Their features are nodes where they are
            active on some clean or corrupted prompt of ``pairs`` or ``discovery``.
        basis: ``neurons`` of every layer, or ``mixed``: dictionaries, and neurons elsewhere; by default dictionaries.
        errors: whether what dictionaries leave out is a node of each layer too; if not, it runs live.
        heads: whether heads are nodes.
        mlps: whether the MLPs of layers in which no feature writes are nodes.
        method: ``eap``, ``atp_qk``, ``eap_ig_inputs``, ``eap_ig_activations``, ``ig_nodes`` or ``relp``, which predict
            effects by gradients (`circuits.predict_effects`), or ``patching``, which measures each.
        replace_by: ``corrupted``, ``mean``, ``resample`` or ``zero`` (`circuits.DonorSource`).
        positions: nodes at each ``named`` position, at the first token and at ``other`` ones, or at ``all`` as wholes.
        discovery: prompts that give means and resamples; by default ``pairs``.
        steps: points of an integrated gradient's path.
        seed: of resamples.
        batch_tokens: tokens run at a time.

    Raises:
        MechstudyError: no prompts, an unknown method, kind of replacement or kind of positions, prompts that lack
            what they need, or dictionaries of another model.
    """
    pairs = checked_pairs(pairs)
    if positions not in ("named", ALL):
        raise MechstudyError(f"components cannot be at {positions!r} positions", facts={"positions": "named, all"})
    names = NamedPositions.whole() if positions == ALL else NamedPositions.of([*pairs, *discovery])
    bases = _bases(model, dictionaries, basis)
    features = active_at(model, bases, names, [*pairs, *discovery], batch_tokens=batch_tokens) if bases else ()
    nodes = node_set(model, names, bases, features, errors=errors, heads=heads, mlps=mlps)
    if method == "patching":
        return measure_effects(
            model, nodes, pairs, replace_by=replace_by, discovery=discovery, seed=seed, batch_tokens=batch_tokens
        )
    return predict_effects(
        model,
        nodes,
        pairs,
        method=method,
        replace_by=replace_by,
        discovery=discovery,
        steps=steps,
        seed=seed,
        batch_tokens=batch_tokens,
    )


def keep_only(
    model: LanguageModel,
    pairs: Iterable[PromptPair],
    effects: EffectsTable,
    *,
    dictionaries: Mapping[int, Basis] | None = None,
    basis: BasisKind | None = None,
    by: str = "magnitude",
    replace_by: Replacement | None = None,
    discovery: Sequence[PromptPair] = (),
    sizes: Sequence[int] = (5, 10, 20),
    n_resamples: int = 2000,
    seed: int = 0,
    batch_tokens: int = 4096,
) -> FaithfulnessCurve:
    """How much of a behaviour the k strongest nodes carry when every other one is replaced.

        curve = ms.keep_only(model, test_pairs, ms.components(model, train_pairs))
        curve.frame, curve.cmd

    Args:
        model: the model.
        pairs: prompts, others than those that the effects are of.
        effects: of `components`; its nodes are the universe, and everything else runs live.
        dictionaries: those of the effects' features.
        basis: that of the effects.
        by: nodes are ranked by ``magnitude`` of the effect, by ``support`` or by ``balance`` (`circuits.ranked`).
        replace_by: what the others are replaced by; by default what the effects are about.
        discovery: prompts that give means and resamples; by default ``pairs``.
        sizes: k, besides MIB's ten fractions of the nodes.
        n_resamples: of the bootstrap over prompts.
        seed: of resamples and the bootstrap.
        batch_tokens: tokens run at a time.

    Raises:
        MechstudyError: as `components`, or prompts with positions that the nodes do not have.
    """
    pairs = checked_pairs(pairs)
    nodes = node_set_of(model, effects.nodes, effects.positions, _bases(model, dictionaries, basis))
    replacements = DonorSource(
        model,
        [nodes],
        replace_by or effects.replaced_by,
        nodes.positions,
        discovery or pairs,
        seed=seed,
        batch_tokens=batch_tokens,
    )
    return faithfulness_curve(
        model,
        pairs,
        nodes,
        effects.order(by),
        replacements,
        sizes=[k for k in sizes if k <= len(nodes.nodes)],
        n_resamples=n_resamples,
        seed=seed,
        batch_tokens=batch_tokens,
    )


def _bases(
    model: LanguageModel, dictionaries: Mapping[int, Basis] | None, basis: BasisKind | None
) -> Mapping[int, Basis]:
    if dictionaries is None and basis is None:
        return {}
    return chosen_bases(model, all_fitted(model, {} if dictionaries is None else dictionaries), basis)
