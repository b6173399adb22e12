"""Attribution graphs as frames of nodes and edges, with their strongest features and scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import save_json
from mechstudy.core.notices import counted

Labels = Mapping[tuple[int, int], str]

_KINDS = {"embedding": "token", "mlp reconstruction error": "error", "logit": "output", "bias": "bias"}
_PROMPT_NODES = {
    "node": pl.String, "kind": pl.String, "feature": pl.String, "layer": pl.Int64, "position": pl.Int64,
    "token": pl.String, "activation": pl.Float64, "cumulative_influence": pl.Float64, "influence": pl.Float64,
    "total_effect": pl.Float64, "live_effect": pl.Float64, "contrast_effect": pl.Float64, "label": pl.String,
}  # fmt: skip
_BEHAVIOUR_NODES = {
    "node": pl.String, "kind": pl.String, "feature": pl.String, "layer": pl.Int64, "position": pl.String,
    "frequency": pl.Float64, "presence": pl.Float64, "activation": pl.Float64, "influence": pl.Float64,
    "total_effect": pl.Float64, "live_effect": pl.Float64, "contrast_effect": pl.Float64, "label": pl.String,
}  # fmt: skip
_HEAD_PAIRS = {
    "head": pl.String, "query": pl.Int64, "key": pl.Int64, "pattern": pl.Float64, "score": pl.Float64,
    "at_query": pl.String, "at_key": pl.String, "term": pl.Float64,
}  # fmt: skip
_EDGES = {"source": pl.String, "target": pl.String, "weight": pl.Float64}
_EFFECTS = ("influence", "total_effect", "live_effect", "contrast_effect")
_SMALLEST_FIRST = ("cumulative_influence", "contrast_effect")

_LONGEST = 80  # characters of a prompt that a graph's repr shows


class GraphFrames:
    """A graph of a prompt or of a behaviour.

    ``nodes`` and ``edges`` are polars frames; ``edges.source`` and ``edges.target`` are names of ``nodes.node``.
    ``bases`` says, where it is known, what the feature numbers of a layer count: ``neurons``, ``dictionary``, or the
    checksum of the dictionary.
    """

    nodes: pl.DataFrame
    edges: pl.DataFrame
    _scores: Mapping[str, Any]
    _json: Mapping[str, Any]
    bases: Mapping[int, str]

    @property
    def _features(self) -> pl.DataFrame:
        """The features to rank, with the columns of ``nodes``."""
        return self.nodes.filter(pl.col("kind") == "feature")

    def top(self, n: int = 10, by: str | None = None) -> pl.DataFrame:
        """The ``n`` most important features, with the columns of ``nodes``; `ablate` accepts them.

        A prompt's graph ranks every feature it attributed, also those that pruning cut from ``nodes``.

        Args:
            n: number of rows; a feature has one for each of its positions.
            by: a column of ``nodes``, largest first (``cumulative_influence`` and ``contrast_effect`` smallest first);
                ``|column|`` ranks by its size. The default is ``contrast_effect`` (the change predicted where the
                feature is set to its activation on the corrupted prompt, or another that the graph names), so features
                that the answer owes most to come first; else ``live_effect`` (what the feature adds, to first order);
                else the influence. Graphs have these where they were computed.

        Raises:
            MechstudyError: no such column, or it is empty.
        """
        features = self._features
        preferred = ("contrast_effect", "live_effect", "influence", "cumulative_influence")
        columns = [name for name in preferred if name in features.columns]
        filled = [name for name in columns if features[name].null_count() < len(features)]
        by = by or next(iter(filled), columns[0])
        by_size = len(by) > 2 and by[0] == by[-1] == "|"
        by = by.strip("|") if by_size else by
        numbers = [name for name in features.columns if features[name].dtype == pl.Float64]
        if by not in numbers or (len(features) and features[by].null_count() == len(features)):
            raise MechstudyError(
                f"features cannot be ranked by {by!r}",
                facts={"columns": ", ".join(name for name in numbers if features[name].null_count() < len(features))},
            )
        key = pl.col(by).abs() if by_size else pl.col(by)
        descending = by_size or by not in _SMALLEST_FIRST
        ranked = features.sort(key, descending=descending, nulls_last=True, maintain_order=True)
        first = ["feature", "position", "token", by]
        order = [*first, *(name for name in ranked.columns if name not in (*first, "node", "kind", "layer"))]
        return _without_empty(ranked.select(name for name in order if name in ranked.columns).head(n))

    def scores(self) -> dict[str, Any]:
        """How much of the model's computation the graph explains.

        ``replacement``: share of the influence on the target that reaches tokens rather than errors;
        ``completeness``: share of every node's inputs that are not errors, weighted by the node's influence; both also
        for the pruned graph, and as circuit-tracer counts them (``_among_rows``: without features that have no row).
        ``conservation_residual_max``: the largest difference between a node's value and the sum
        of its inputs.
        """
        return dict(self._scores)

    def save(self, path: str | Path) -> Path:
        """Write the graph as ``.json``; a prompt's graph in the format of Neuronpedia and circuit-tracer.

        Returns:
            The path.
        """
        return save_json(path, dict(self._json), "graphs", ".json or .html")


class PromptFrames(GraphFrames):
    """The attribution graph of one prompt.

    A node is a feature at a position, a dictionary's error, a token, a bias or an output; an edge's ``weight`` is the
    direct effect of its source on its target. The graph is pruned; ``scores()`` also has the scores of the whole graph.

    Columns of ``nodes``: node, kind (feature, error, token, bias, output), feature (``13/1741``), layer, position,
    token, activation, cumulative_influence (the share of all influence held by this node and those above it: small is
    important), and for features, where computed: influence, total_effect (first order, attention frozen),
    live_effect (first order, nothing frozen), contrast_effect (the predicted change where the feature is replaced by
    its activation on the corrupted prompt); label (the token it fires on, or promotes, most).

    ``positions`` are the token positions that the prompt names.

    ``explains`` is ``clean``, or ``difference`` for the graph of what the clean prompt has over the corrupted one: then
    weights are of differences, and ``change`` is a feature's activation minus that on the corrupted prompt.
    """

    def __init__(self, json: Mapping[str, Any], labels: Labels | None = None) -> None:
        self._json = json
        meta = json.get("metadata") or {}
        ours = meta.get("mechstudy") or {}
        self.positions: dict[str, int] = {str(name): int(at) for name, at in (ours.get("positions") or {}).items()}
        self.prompt: str = str(meta.get("prompt") or "")
        self.tokens: list[str] = [str(token) for token in meta.get("prompt_tokens") or []]
        self._scores = {k: v for k, v in (ours.get("scores") or {}).items() if not isinstance(v, str)}
        effects = ours.get("feature_effects") or {}
        rows = [self._row(node, effects, labels or {}) for node in json["nodes"]]
        self._attributed = [self._attributed_row(node, values, labels or {}) for node, values in effects.items()]
        self.nodes = pl.DataFrame(rows, schema=_PROMPT_NODES, orient="row")
        self.explains = "difference" if ours.get("explains") == "difference" else "clean"
        if self.explains == "difference":
            changes = {str(node["node_id"]): node["change"] for node in json["nodes"] if "change" in node}
            change = pl.col("node").replace_strict(changes, default=None, return_dtype=pl.Float64)
            self.nodes = self.nodes.with_columns(change=change)
        self.bases = _bases_of(self.nodes, ours["neuron_layers"]) if "neuron_layers" in ours else {}
        self.edges = pl.DataFrame(
            [(edge["source"], edge["target"], edge["weight"]) for edge in json["links"]], schema=_EDGES, orient="row"
        )

    @property
    def ledger(self) -> dict[str, float]:
        """The target as a sum: features + errors + tokens + biases = total, beside what the model computed.

        ``residual`` is the difference: rounding, and in the graph of a difference what the path's rule misses.
        """
        return dict(((self._json.get("metadata") or {}).get("mechstudy") or {}).get("ledger") or {})

    @property
    def answer_weights(self) -> dict[str, float]:
        """What each output counts in what the graph explains, by its node: 1 for the only one, else its probability."""
        outputs = [node for node in self._json["nodes"] if _KINDS.get(str(node["feature_type"])) == "output"]
        weights = [node.get("influence") or node.get("token_prob") or 1.0 for node in outputs]
        names = [str(node["node_id"]) for node in outputs]
        return dict(zip(names, map(float, weights), strict=True)) if len(names) > 1 else dict.fromkeys(names, 1.0)

    @property
    def qk_edges(self) -> pl.DataFrame:
        """Edges through attention patterns, strongest first: source, target, weight.

        What a source does to a target by moving where heads attend, to first order in the score. They stand beside
        ``edges``, which freeze patterns.
        """
        listed = ((self._json.get("metadata") or {}).get("mechstudy") or {}).get("qk_links") or []
        return pl.DataFrame(listed, schema=_EDGES, orient="row")

    @property
    def heads(self) -> pl.DataFrame:
        """Attention heads by the influence that passes each first: head, layer, query (token position), influence.

        The strongest edges are split exactly over the heads they run through; ``scores()`` has the share of all edges'
        influence that these have.
        """
        listed = ((self._json.get("metadata") or {}).get("mechstudy") or {}).get("heads") or []
        rows = [(f"{layer}.{head}", layer, query, influence) for layer, head, query, influence in listed]
        schema = {"head": pl.String, "layer": pl.Int64, "query": pl.Int64, "influence": pl.Float64}
        return pl.DataFrame(rows, schema=schema, orient="row")

    @property
    def head_pairs(self) -> pl.DataFrame:
        """Why the strongest heads attend where they do: the largest terms of their scores, a row for each.

        Columns: head, query and key (token positions; the key is where the head reads most of its influence), pattern
        and score there, at_query and at_key (the pair: nodes, ``head.21.4`` for what a head of a lower layer wrote, or
        ``rest``), term. All terms of a score, also those that are not listed, add up to the score.
        """
        listed = ((self._json.get("metadata") or {}).get("mechstudy") or {}).get("head_pairs") or []
        rows = [
            (f"{one['layer']}.{one['head']}", one["query"], one["key"], one["pattern"], one["score"], *pair)
            for one in listed
            for pair in one["pairs"]
        ]
        return pl.DataFrame(rows, schema=_HEAD_PAIRS, orient="row")

    def __repr__(self) -> str:
        kinds = dict(self.nodes["kind"].value_counts().iter_rows())
        counts = ", ".join(counted(n, f"{kind} node") for kind, n in sorted(kinds.items()))
        scores = [
            f"{name} {self._scores[name]:.2f}" for name in ("replacement", "completeness") if name in self._scores
        ]
        return "; ".join([f"Graph of {_short(self.prompt)!r}: {counts}", counted(len(self.edges), "edge"), *scores])

    @property
    def _features(self) -> pl.DataFrame:
        drawn = super()._features
        if not self._attributed:
            return drawn
        every = pl.DataFrame(self._attributed, schema=_PROMPT_NODES, orient="row").drop("cumulative_influence")
        return every.join(drawn.select("node", "cumulative_influence"), on="node", how="left", maintain_order="left")

    def _attributed_row(self, node: str, values: Sequence[float | None], labels: Labels) -> tuple[Any, ...]:
        layer, number, position = map(int, node.split("_"))
        return (node, "feature", f"{layer}/{number}", layer, position, self.tokens[position], values[0], None,
                *_padded(values[1:]), labels.get((layer, number)))  # fmt: skip

    def _row(
        self, node: Mapping[str, Any], effects: Mapping[str, Sequence[float | None]], labels: Labels
    ) -> tuple[Any, ...]:
        name, kind = str(node["node_id"]), _KINDS.get(str(node["feature_type"]), "feature")
        layer = int(node["layer"]) if str(node["layer"]).isdigit() and kind not in ("token", "output") else None
        position = int(node["ctx_idx"])
        feature, label = None, node.get("clerp") or None
        if kind == "feature":
            number = int(name.split("_")[1])
            feature, label = f"{layer}/{number}", label or labels.get((layer or 0, number))
        token = self.tokens[position] if kind != "bias" and position < len(self.tokens) else None
        influence = node.get("influence") if kind != "output" else None
        own = _padded((effects.get(name) or ())[1:])
        return (name, kind, feature, layer, position, token, node.get("activation"), influence, *own, label or None)


class BehaviourFrames(GraphFrames):
    """The graph of a behaviour: the graphs of its prompts, added up by feature and named position.

    ``prompts`` are the graphs of single prompts. Columns of ``nodes``: node, kind, feature (``13/1741``), layer,
    position (a name), frequency (share of prompts whose pruned graph has it), presence (share on which it is active),
    activation, influence, total_effect, live_effect, contrast_effect (means over prompts), label.
    ``positions`` are the names of positions from left to right. ``prompt_ids`` are the ids of the prompt pairs by the
    names of their graphs, in the order of ``prompts``.
    """

    def __init__(
        self,
        json: Mapping[str, Any],
        scores: Mapping[str, Any],
        prompts: Sequence[PromptFrames] = (),
        labels: Labels | None = None,
    ) -> None:
        self._json = json
        self._scores = {name: value for name, value in scores.items() if name != "per_prompt"}
        self.prompt_ids = {str(row["slug"]): str(row["prompt_id"]) for row in scores.get("per_prompt") or ()}
        self.behaviour: str = str(json.get("behaviour") or "")
        self.positions = tuple(str(name) for name in json.get("positions") or ())
        self.n_layers: int | None = json.get("n_layers")
        self.n_prompts: int = int(json.get("n_prompts") or 0)
        self.explains = "difference" if json.get("explains") == "difference" else "clean"
        self.prompts = prompts
        rows = [_behaviour_row(node, labels or {}) for node in json["nodes"]]
        self.nodes = pl.DataFrame(rows, schema=_BEHAVIOUR_NODES, orient="row")
        self.bases = _bases_of(self.nodes, json.get("neuron_layers") or ())
        self.edges = pl.DataFrame(
            [{name: value for name, value in edge.items() if not isinstance(value, list)} for edge in json["edges"]],
            schema_overrides=_EDGES,
            infer_schema_length=None,
        )

    @property
    def qk_edges(self) -> pl.DataFrame:
        """The strongest edges through attention patterns: source, target, weight, strength, frequency."""
        schema = _EDGES | {"strength": pl.Float64, "frequency": pl.Float64}
        rows = [[edge[name] for name in schema] for edge in self._json.get("qk_edges") or []]
        return pl.DataFrame(rows, schema=schema, orient="row")

    @property
    def heads(self) -> pl.DataFrame:
        """Attention heads at named query positions by the influence that passes each first.

        Columns: id (``head.23.3@last``), influence (mean over prompts), frequency (share of prompts with 1% or more).
        """
        schema = {"id": pl.String, "influence": pl.Float64, "frequency": pl.Float64}
        return pl.DataFrame(list(self._json.get("heads") or []), schema=schema)

    def __repr__(self) -> str:
        n_features = len(self.nodes.filter(pl.col("kind") == "feature"))
        return (
            f"Graph of {self.behaviour} over {self.n_prompts} prompts: "
            f"{n_features} features at named positions, {len(self.edges)} edges"
        )


def _bases_of(nodes: pl.DataFrame, neuron_layers: Collection[int]) -> dict[int, str]:
    """What the features of each layer are."""
    layers = sorted(nodes.filter(kind="feature")["layer"].unique())
    return {layer: "neurons" if layer in neuron_layers else "dictionary" for layer in layers}


def _padded(effects: Sequence[float | None]) -> tuple[float | None, ...]:
    """A feature's effects; files of earlier versions have fewer."""
    return (*effects, *(None,) * (len(_EFFECTS) - len(effects)))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def _behaviour_row(node: Mapping[str, Any], labels: Labels) -> tuple[Any, ...]:
    is_feature = node["type"] == "feature"
    key = (node["layer"], node["feature"])
    kind = "output" if node["type"] == "logit" else node["type"]
    return (
        node["id"], kind, f"{key[0]}/{key[1]}" if is_feature else None, node["layer"], node["position"],
        node["frequency"], node.get("presence"), node["activation"],
        *(node.get(name) for name in _EFFECTS), labels.get(key) if is_feature else None,
    )  # fmt: skip


def _without_empty(frame: pl.DataFrame) -> pl.DataFrame:
    """Drop columns that are empty."""
    return frame.select(name for name in frame.columns if len(frame) == 0 or frame[name].null_count() < len(frame))
