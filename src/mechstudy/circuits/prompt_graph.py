"""The attribution graph of one prompt: its JSON file, its scores, and its part of a behaviour's graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.bases import chosen_bases
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.difference_graph import attribute_difference
from mechstudy.circuits.graph import Graph, Pruned, prune
from mechstudy.circuits.graph_attention import Attention, attention_of
from mechstudy.circuits.graph_scores import graph_score, path_gaps
from mechstudy.circuits.live import explained_gradients, live_effects, sites_written
from mechstudy.circuits.neuronpedia import graph_json
from mechstudy.circuits.node_effects import NodeEffects
from mechstudy.circuits.node_sets import nodes_of
from mechstudy.circuits.prompt_record import prompt_record
from mechstudy.circuits.question import Question
from mechstudy.circuits.replacements import Replacements
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Progress
from mechstudy.dictionaries.fitted import all_fitted
from mechstudy.dictionaries.neurons import Basis, Neurons
from mechstudy.features.examples import logit_effects
from mechstudy.models.language_model import LanguageModel

_PROMOTED = 8  # tokens listed of a feature
_STRONGEST = 50  # features by live effect that are described although pruning may cut them


@dataclass(frozen=True)
class ExplainedPrompt:
    """``json`` is the graph's file, ``score`` its entry in scores.json, ``record`` its part of aggregate.json."""

    json: dict[str, Any]
    score: dict[str, Any]
    record: dict[str, Any]

    @property
    def metadata(self) -> dict[str, Any]:
        """The graph's entry in graph-metadata.json, from which Neuronpedia's viewer lists graphs."""
        return {key: value for key, value in self.json["metadata"].items() if key != "mechstudy"}


def explain_prompt(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    pair: PromptPair,
    slug: str,
    config: AttributionConfig,
    *,
    replacements: Replacements | None = None,
    checkpointing: str = "auto",
    progress: Progress | None = None,
) -> ExplainedPrompt:
    """Attribute the pair's clean prompt, prune the graph and describe it.

    Args:
        slug: the graph's name, which is also its file's.
        replacements: predict the effects of replacing nodes too (`replacements_of`).
        checkpointing: recompute activations in the backward pass of live effects (auto, on, off).
    """
    question = Question.of_pair(pair, continued=config.target == "logit_difference")
    graph, pruned, live_S, effects = _graph(
        model, dictionaries, question, config, replacements, checkpointing, progress
    )
    attention = attention_of(model, graph, pruned, config)
    score = {"slug": slug, "prompt": pair.clean, "prompt_id": pair.id} | graph_score(graph, pruned)
    json = _json(
        model, question, slug, graph, pruned, config, {"scores": score, "neuron_layers": graph.neuron_layers}, attention
    )
    n_prompt = len(pair.clean_tokens)
    record = prompt_record(pair.id, graph, pruned, pair.positions, live_S, n_prompt, effects, attention)
    return ExplainedPrompt(json, score, record)


def explain_question(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    question: Question,
    config: AttributionConfig,
    *,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Attribute one prompt and prune the graph.

    Returns:
        The graph's file, which also holds the activation, influence, total and live effect of every feature with a
        row, drawn or not; and the tokens promoted by features that are drawn or have the largest live effects, as
        features.json has them.

    Raises:
        MechstudyError: dictionaries of another model, or none where the config asks for them.
    """
    dictionaries = chosen_bases(model, all_fitted(model, dictionaries), config.basis)
    _check(model, dictionaries)
    config = config.model_copy(update={"target": "logits" if question.explained is None else "logit_difference"})
    replacements = None
    if question.explained is not None and question.corrupted and config.contrast.replace_by in ("auto", "corrupted"):
        steps = config.contrast.steps if config.contrast.method == "integrated" else 0
        replacements = Replacements.of_pairs(model, nodes_of(model, dictionaries), "corrupted", steps)
    graph, pruned, live_S, effects = _graph(model, dictionaries, question, config, replacements, "auto", progress)
    extra: dict[str, Any] = {"scores": graph_score(graph, pruned), "feature_effects": _effects(graph, live_S, effects)}
    extra["neuron_layers"] = graph.neuron_layers
    attention = attention_of(model, graph, pruned, config)
    json = _json(model, question, "prompt", graph, pruned, config, extra, attention)
    kept = pruned.sources_S[: graph.index.n_features].nonzero()[:, 0].tolist()
    strongest = [] if live_S is None else live_S.argsort(descending=True)[:_STRONGEST].tolist()
    return json, _promoted(model, dictionaries, graph, [*kept, *strongest])


def _graph(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    question: Question,
    config: AttributionConfig,
    replacements: Replacements | None,
    checkpointing: str,
    progress: Progress | None,
) -> tuple[Graph, Pruned, Tensor | None, NodeEffects | None]:
    tokens_T = torch.tensor(question.tokens, device=model.device)
    if config.explains == "difference":
        other_T = torch.tensor(question.counterpart, device=model.device)
        graph = attribute_difference(
            model, dictionaries, tokens_T, other_T, config, explained=question.explained, progress=progress
        )
    else:
        graph = attribute(model, dictionaries, tokens_T, config, explained=question.explained, progress=progress)
    live_S, effects = None, None
    if question.explained is not None:
        gradients = explained_gradients(model, tokens_T, question.explained, sites_written(dictionaries), checkpointing)
        live_S = live_effects(model, dictionaries, graph, question.explained, gradients=gradients)
        effects = None if replacements is None else replacements.effects(question, gradients)
    return graph, prune(graph, config.node_threshold, config.edge_threshold), live_S, effects


def _json(
    model: LanguageModel,
    question: Question,
    slug: str,
    graph: Graph,
    pruned: Pruned,
    config: AttributionConfig,
    extra: Mapping[str, Any],
    attention: Attention,
) -> dict[str, Any]:
    difference = config.target == "logit_difference" and question.right and graph.difference is None
    about = {
        "positions": dict(question.positions),
        **question.about,
        "logit_difference": graph.target_ledger().target if difference else None,
    }
    if graph.difference is not None:
        about |= {"explains": "difference", "corrupted_tokens": model.token_strings(question.corrupted)}
        about |= {"path": {"steps": graph.difference.steps} | path_gaps(graph)}
    return graph_json(
        graph,
        pruned,
        slug=slug,
        scan=model.name,
        prompt=question.prompt,
        token_strings=model.token_strings(question.tokens),
        config=config,
        extra={**about, **extra},
        attention=attention,
    )


def _check(model: LanguageModel, dictionaries: Mapping[int, Basis]) -> None:
    fix = "dictionaries that were trained on this model"
    for layer, dictionary in dictionaries.items():
        if isinstance(dictionary, Neurons):
            continue
        if not 0 <= layer < model.n_layers:
            facts = {"model": f"{model.name} has layers 0-{model.n_layers - 1}"}
            raise MechstudyError(f"a dictionary of layer {layer}", facts=facts, fix=fix)
        if dictionary.cfg.d_out != model.d_model:
            raise MechstudyError(
                f"the dictionary of layer {layer} writes {dictionary.cfg.d_out} coordinates",
                facts={"model": f"{model.name} is {model.d_model} wide"},
                fix=fix,
            )


def _effects(graph: Graph, live_S: Tensor | None, effects: NodeEffects | None) -> dict[str, list[float | None]]:
    """Node id -> activation, influence, total, live and contrast effect of every feature with a row in the graph."""
    contrast: dict[tuple[int, int, int], float] = {}
    if effects is not None:
        places = zip(effects.layer_M.tolist(), effects.feature_M.tolist(), effects.position_M.tolist(), strict=True)
        contrast = dict(zip(places, effects.effect_M.tolist(), strict=True))
    (influence_S, _), total_S = graph.influence, graph.total_effects_S
    result: dict[str, list[float | None]] = {}
    for column in sorted(graph.column_R[graph.column_R >= 0].tolist()):
        columns = (graph.feature_layer_S, graph.feature_id_S, graph.feature_position_S)
        layer, feature, position = (int(values[column]) for values in columns)
        result[f"{layer}_{feature}_{position}"] = [
            float(graph.activation_S[column]),
            float(influence_S[column]),
            float(total_S[column]),
            None if live_S is None else float(live_S[column]),
            None if effects is None else contrast.get((layer, feature, position), 0.0),
        ]
    return result


def _promoted(
    model: LanguageModel, dictionaries: Mapping[int, Basis], graph: Graph, columns: list[int]
) -> list[dict[str, Any]]:
    """The tokens that each feature promotes most."""
    pairs = sorted({(int(graph.feature_layer_S[c]), int(graph.feature_id_S[c])) for c in columns})
    pages: list[dict[str, Any]] = []
    for layer in sorted({layer for layer, _ in pairs}):
        features = [feature for at, feature in pairs if at == layer]
        promoted = logit_effects(model, dictionaries[layer], features, _PROMOTED)
        for feature, logits in zip(features, promoted, strict=True):
            pages.append({"layer": layer, "feature": feature, "kind": dictionaries[layer].cfg.kind, **logits})
    return pages
