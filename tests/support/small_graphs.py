"""Small attribution graphs as JSON, drawn at random: a prompt's and a behaviour's."""

from __future__ import annotations

from random import Random
from typing import Any

POSITIONS = {"subject": 1, "last": 4}
_TOKENS = ("The", " keys", " to", " the", " cabinet")


def prompt_json(
    seed: int, n_features: int = 8, *, tokens: tuple[str, ...] = _TOKENS, named: bool = False, recorded: bool = True
) -> dict[str, Any]:
    """A prompt's graph: features in layers 0-3 of a model of 4, a token at each position, one output."""
    draw = Random(seed)
    last = len(tokens) - 1
    output = {"node_id": f"5_7_{last}", "feature_type": "logit", "layer": "5", "ctx_idx": last, "clerp": "x = 1"}
    sources = [
        {"node_id": f"E_{i}_{i}", "feature_type": "embedding", "layer": "E", "ctx_idx": i} for i in range(len(tokens))
    ]
    names = sorted({(draw.randrange(4), draw.randrange(50), draw.randrange(len(tokens))) for _ in range(n_features)})
    features = [
        {
            "node_id": "_".join(map(str, name)), "feature_type": "cross layer transcoder", "layer": str(name[0]),
            "ctx_idx": name[2], "activation": draw.uniform(0, 9), "influence": draw.random(),
        }
        for name in names
    ]  # fmt: skip
    links = [
        {"source": source["node_id"], "target": target["node_id"], "weight": draw.gauss(0, 1)}
        for target in [output, *features]
        for source in [*sources, *features]
        if _depth(source) < _depth(target) and source["ctx_idx"] <= target["ctx_idx"]
    ]
    effects = {node["node_id"]: [node["activation"], draw.random(), 0.1, 0.2, None] for node in features}
    ours = {"positions": POSITIONS if named else {}, **({"feature_effects": effects} if recorded else {})}
    return {
        "metadata": {"prompt": "".join(tokens), "prompt_tokens": list(tokens), "mechstudy": ours},
        "nodes": [output, *sources, *features],
        "links": links,
    }


def behaviour_json(seed: int, n_features: int = 12, **about: Any) -> dict[str, Any]:
    """A behaviour's graph: features in layers 0-3 of a model of 4, at two named positions."""
    draw = Random(seed)
    names = sorted(
        {(draw.randrange(4), draw.randrange(50), draw.choice(["subject", "last"])) for _ in range(n_features)}
    )
    features = [
        {
            "id": f"f.{layer}.{feature}@{position}", "type": "feature", "layer": layer, "feature": feature,
            "position": position, "frequency": 1.0, "influence": draw.random(), "activation": draw.uniform(0, 9),
        }
        for layer, feature, position in names
    ]  # fmt: skip
    output = {"id": "logit", "type": "logit", "layer": None, "feature": None, "position": "last", "frequency": 1.0,
              "influence": 1.0, "activation": None}  # fmt: skip
    edges = [
        {"source": source["id"], "target": target["id"], "weight": draw.gauss(0, 1)}
        for target in [output, *features]
        for source in features
        if target is output or source["layer"] < target["layer"]
    ]
    return {
        "behaviour": "agreement", "n_prompts": 8, "n_layers": 4, "nodes": [output, *features], "edges": edges,
    } | about  # fmt: skip


def _depth(node: dict[str, Any]) -> int:
    return -1 if node["layer"] == "E" else int(node["layer"])
