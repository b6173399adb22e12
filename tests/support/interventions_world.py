"""Random prompt pairs, random transcoders of a model, and groups of their features, for tests."""

from __future__ import annotations

import torch

from mechstudy.behaviours.schema import Answers, AnswerSets, PromptPair
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.live import explained_gradients
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from mechstudy.interventions.edges import LOGIT, EdgeCheck, EdgeInstance
from mechstudy.interventions.features import FeatureAt, FeatureGroup, NamedActivations, feature_groups
from mechstudy.models.sites import Site


def pair(number: int, length: int = 7, cluster: str | None = None, seed: int = 0) -> PromptPair:
    """A pair of random tokens that differ at position 2 ("subject") only."""
    g = torch.Generator().manual_seed(1000 * seed + number)
    clean = torch.randint(1, 257, (length,), generator=g).tolist()
    corrupted = list(clean)
    corrupted[2] = clean[2] % 256 + 1
    answer, wrong = torch.randperm(256, generator=g)[:2].add(1).tolist()
    return PromptPair(
        id=f"p{seed}-{number}",
        template=f"t{number % 3}",
        group=cluster or f"t{number % 3}/{number // 2}",
        clean=f"clean {number}",
        corrupted=f"corrupted {number}",
        answer=" a",
        wrong_answer=" b",
        positions={"subject": 2, "last": length - 1},
        clean_tokens=tuple(clean),
        corrupted_tokens=tuple(corrupted),
        answer_tokens=(answer,),
        wrong_tokens=(wrong,),
    )


def pairs(n: int, lengths: tuple[int, ...] = (7, 9), seed: int = 0) -> list[PromptPair]:
    """Several pairs, of the lengths in turn."""
    return [pair(i, lengths[i % len(lengths)], seed=seed) for i in range(n)]


def with_sets(pair: PromptPair, combine: AnswerSets, n_right: int = 3, n_wrong: int = 2) -> PromptPair:
    """The pair with more right and more wrong answers, of one token each."""
    first = (pair.answer_tokens[0], pair.wrong_tokens[0])
    more = [t for t in range(1, 257, 23) if t not in first]
    right = ((first[0],), *((t,) for t in more[: n_right - 1]))
    wrong = ((first[1],), *((t,) for t in more[n_right - 1 : n_right + n_wrong - 2]))
    sets = Answers(
        combine=combine,
        right=(pair.answer, *(f" r{t}" for (t,) in right[1:])),
        wrong=(pair.wrong_answer, *(f" w{t}" for (t,) in wrong[1:])),
        right_tokens=right,
        wrong_tokens=wrong,
    )
    return pair.model_copy(update={"answer_sets": sets})


def transcoder(
    d: int, layer: int, n_features: int = 40, k: int = 8, skip: bool = False, seed: int = 0, **metadata: float
) -> Dictionary:
    g = torch.Generator().manual_seed(1000 * seed + layer)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64) / shape[0] ** 0.5

    kind = "skip_transcoder" if skip else "transcoder"
    meta = DictionaryMeta(kind, "topk", d, d, n_features, k, f"mlp_in.{layer}", f"mlp_out.{layer}", dict(metadata))
    return Dictionary(
        meta,
        W_enc=draw(d, n_features),
        b_enc=0.1 * draw(n_features),
        W_dec=draw(n_features, d),
        b_dec=draw(d),
        W_skip=draw(d, d) if skip else None,
    )


def transcoders(model, layers: tuple[int, ...] = (0, 2), skip: bool = False, seed: int = 0) -> dict[int, Dictionary]:
    return {layer: transcoder(model.d_model, layer, skip=skip, seed=seed) for layer in layers}


def logit_differences(some: list[PromptPair], logits_BV: torch.Tensor) -> torch.Tensor:
    """The answer's logit minus the wrong answer's, of each pair's row."""
    rows = zip(some, logits_BV.double(), strict=True)
    return torch.stack([row_V[p.answer_tokens[0]] - row_V[p.wrong_tokens[0]] for p, row_V in rows])


def mlp_gradients(
    model, tokens: torch.Tensor, explained, layers, checkpointing: str = "auto"
) -> dict[int, torch.Tensor]:
    """Gradient of what is explained at what each layer's MLP writes."""
    sites = [Site("mlp_out", layer) for layer in layers]
    gradients = explained_gradients(model, tokens, explained, sites, checkpointing)
    return {site.layer: gradient for site, gradient in gradients.items()}


def slope(value, vector: torch.Tensor, layer: int, position: int, step: float = 1e-5) -> float:
    """How fast ``value(edits)`` changes along a vector that is added to what a layer's MLP writes at a position."""

    def pushed(size: float) -> float:
        def edit(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[0, position] += size * vector
            return x

        return value({Site("mlp_out", layer): edit})

    return (pushed(step) - pushed(-step)) / (2 * step)


def strongest_edges(model, dictionaries, some: list[PromptPair], n_features: int) -> list[EdgeCheck]:
    """The three strongest edges of each pair's graph into the target and into its last expanded features."""
    checks: dict[tuple[FeatureAt, FeatureAt | str], list[EdgeInstance]] = {}
    for p in some:
        graph = attribute(
            model, dictionaries, torch.tensor(p.clean_tokens), AttributionConfig(),
            answer=p.answer_tokens[0], wrong_answer=p.wrong_tokens[0],
        )  # fmt: skip
        for row in (0, *range(len(graph.column_R) - n_features, len(graph.column_R))):
            target, target_at = LOGIT, ()
            if (t := int(graph.column_R[row])) >= 0:
                target = FeatureAt(int(graph.feature_layer_S[t]), int(graph.feature_id_S[t]), "other")
                target_at = (int(graph.feature_position_S[t]),)
            for s in graph.A_RS[row, : graph.index.n_features].abs().topk(3).indices.tolist():
                source = FeatureAt(int(graph.feature_layer_S[s]), int(graph.feature_id_S[s]), "other")
                instance = EdgeInstance(p, float(graph.A_RS[row, s]), (int(graph.feature_position_S[s]),), target_at)
                checks.setdefault((source, target), []).append(instance)
    return [EdgeCheck(s, t, tuple(i)) for (s, t), i in checks.items()]


def strongest(discovery: NamedActivations, layer: int, name: str, n: int) -> list[FeatureAt]:
    """The features that are most active on average."""
    return [FeatureAt(layer, f, name) for f in discovery.means(layer, name).topk(n).indices.tolist()]


def groups_of(discovery: NamedActivations, layers: tuple[int, ...] = (0, 2), n: int = 2) -> list[FeatureGroup]:
    """Two groups of features that are active at the subject and at the last position."""
    features = [f for layer in layers for name in ("subject", "last") for f in strongest(discovery, layer, name, n)]
    nodes = [
        {"type": "feature", "layer": f.layer, "feature": f.feature, "position": f.position, "total_effect": -i}
        for i, f in enumerate(features)
    ]
    return feature_groups(nodes, n_groups=2, group_size=len(features) // 2, rank_by="total_effect")
