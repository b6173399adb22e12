"""Numbers of the benchmarks, from the results that the repository stores."""

# ruff: noqa: RUF001 - signs of multiplication are what the text shows

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mechstudy.core.jsonio import read_json
from mechstudy.report.formatting import integer, number

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
ARCHITECTURES = {"topk": "TopK", "batchtopk": "BatchTopK", "matryoshka": "Matryoshka"}
_NODE_METHODS = {
    "eap": "EAP",
    "eap_ig_inputs": "EAP-IG, inputs",
    "eap_ig_activations": "EAP-IG, activations",
    "ig_nodes": "node paths",
    "relp": "RelP",
    "patching": "exact patching",
}
_EDGE_METHODS = {
    "eap": "ours, EAP",
    "eap_ig_inputs": "ours, EAP-IG",
    "patching": "ours, exact patching",
    "auto-circuit eap": "auto-circuit, EAP",
    "auto-circuit ig": "auto-circuit, integrated gradients",
    "auto-circuit acdc": "auto-circuit, ACDC",
}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def stored(name: str) -> dict[str, Any]:
    """The results of one benchmark."""
    content: dict[str, Any] = read_json(RESULTS / f"{name}.json")
    return content


def stored_numbers() -> dict[str, Any]:
    """Everything that the text says of the benchmarks, as text."""
    return {
        "quality": _quality(stored("quality_bfloat16")),
        "worlds": _worlds(stored("synthetic")),
        "steps": _steps(stored("step_time")),
        "graph": _graph(stored("adjacency")),
        "prompt": _prompt(stored("one_prompt")),
        "resume": _resume(stored("resume")),
        "edges": _edges(stored("edges")),
        "circuits": _circuits(stored("circuits")),
        "peers": _peers(stored("known_circuits")),
        "null": _null(stored("null_studies")),
        "coverage": _coverage(stored("coverage")),
    }


def fvu_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each architecture, library and recipe: FVU on held-out rows where L0 over training rows is k."""
    rows = []
    for architecture, found in results["found"].items():
        for label, row in found.items():
            library, _, recipe = label.partition(" ")
            rows.append(
                {"architecture": ARCHITECTURES[architecture], "library": library, "fvu": row["fvu_at_k"],
                 "recipe": "ours" if library == "mechstudy" else recipe.strip("()").split()[0]}
            )  # fmt: skip
    return rows


def _quality(results: Mapping[str, Any]) -> dict[str, Any]:
    data, options = results["data"], results["options"]
    peers = [v["best_peer_fvu_at_k"] - v["ours"] for v in results["verdicts"].values()]
    rows = fvu_of(results)
    own = [
        min(r["fvu"] for r in rows if r["architecture"] == a and r["recipe"] == "own")
        - next(r["fvu"] for r in rows if r["architecture"] == a and r["library"] == "mechstudy")
        for a in ARCHITECTURES.values()
    ]
    return {
        "rows": integer(options["rows"]),
        "held_out": integer(data["held_out_rows"]),
        "features": integer(options["features"]),
        "k": integer(options["k"]),
        "layer": integer(data["layer"]),
        "ahead": span(peers, 3),
        "ahead_own": span(own, 2),
    }


def _worlds(results: Mapping[str, Any]) -> dict[str, Any]:
    names = {"mechstudy": "ours", "saelens": "SAELens'"}
    rows = [
        {
            "world": names[world],
            "architecture": ARCHITECTURES[architecture],
            **{
                f"{score}_{whose}": number(scores[score][field], 3)
                for score in ("mcc", "f1")
                for whose, field in (("ours", "ours"), ("peer", "best_peer"))
            },
        }
        for world, by in results["verdicts"].items()
        for architecture, scores in by.items()
    ]
    return {"seeds": integer(len(results["options"]["seeds"])), "table": rows}


def step_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fastest precision of each library and architecture at each shape, in ms."""
    best: dict[tuple[str, str, str], float] = {}
    for shape, found in results["shapes"].items():
        for what, row in found.items():
            library, _, rest = what.partition(" ")
            architecture = rest.split(" ")[0]
            if architecture not in ARCHITECTURES:
                continue
            key = (shape, library, ARCHITECTURES[architecture])
            best[key] = min(best.get(key, float("inf")), row["median_ms"])
    return [{"shape": s, "library": lib, "architecture": a, "ms": ms} for (s, lib, a), ms in best.items()]


def _steps(results: Mapping[str, Any]) -> dict[str, Any]:
    rows = step_rows(results)

    def ratio(shape: str, architecture: str) -> float:
        here = [r for r in rows if (r["shape"], r["architecture"]) == (shape, architecture)]
        ours = next(r["ms"] for r in here if r["library"] == "mechstudy")
        return float(min(r["ms"] for r in here if r["library"] != "mechstudy") / ours)

    shapes = list(results["shapes"])
    return {
        "topk": span([ratio(shape, "TopK") for shape in shapes], 1),
        "batchtopk": span([ratio(shape, "BatchTopK") for shape in shapes], 1),
        "rounds": integer(results["rounds"]),
    }


def _graph(results: Mapping[str, Any]) -> dict[str, Any]:
    seconds = [run["attribute"] for run in results["ours_seconds"]]
    theirs = results["circuit_tracer"]["seconds"]
    return {
        "active": integer(results["active"]),
        "rows": integer(results["rows"][0]),
        "tokens": integer(results["tokens"]),
        "ours": span(seconds, 1),
        "theirs": number(theirs, 0),
        "times": number(theirs / fmean(seconds), 0),
        "difference": power(results["largest_difference"]),
        "threads": integer(results["threads"]),
    }


def _prompt(results: Mapping[str, Any]) -> dict[str, Any]:
    return {"seconds": number(results["seconds"], 1), "cpu": number(results["cpu_seconds"], 1)}


def _resume(results: Mapping[str, Any]) -> dict[str, Any]:
    trials = results["trials"]
    return {"identical": integer(sum(t["identical"] for t in trials)), "n": integer(len(trials))}


def _edges(results: Mapping[str, Any]) -> dict[str, Any]:
    found = results["indirect_object_identification"]["corrupted"]
    return {
        "value_live": number(found["value"]["spearman_direct_live"], 2),
        "pattern_own": number(found["qk"]["spearman_qk"], 2),
        "pattern_live": number(found["qk"]["spearman_direct_live"], 2),
        "beyond": number(found["qk"]["beyond"], 2),
    }


def _circuits(results: Mapping[str, Any]) -> dict[str, Any]:
    rows = results["rows"]
    names = list(dict.fromkeys(row["circuit"] for row in rows))
    nodes = [row for row in rows if row["kind"] == "node"]
    means = {(row["kind"], row["method"]): row for row in results["means"]}
    checks = results["checks"].values()
    return {
        "n": integer(len(names)),
        "largest": integer(max(row["n"] for row in nodes)),
        "kept": power(max(check["kept"] for check in checks)),
        "removed": number(min(check["removed"] for check in checks), 2),
        "methods": list(_NODE_METHODS.values()),
        "nodes": [
            {
                "circuit": name.removesuffix("_0").replace("_", " "),
                "true": _true(nodes, name),
                "scores": [_auroc(nodes, name, method) for method in _NODE_METHODS],
            }
            for name in names
        ],
        "mean_nodes": [number(means["node", method]["auroc"], 3) for method in _NODE_METHODS],
        "mean_edges": [
            number(means["edge", method]["auroc"], 3) if ("edge", method) in means else "" for method in _NODE_METHODS
        ],
        "steep": _auroc(nodes, "threshold", "ig_nodes"),
    }


def _true(rows: Iterable[Mapping[str, Any]], circuit: str) -> str:
    row = next(row for row in rows if row["circuit"] == circuit)
    return f"{row['n_true']} of {integer(row['n'])}"


def _auroc(rows: Iterable[Mapping[str, Any]], circuit: str, method: str) -> str:
    found = [row["auroc"] for row in rows if (row["circuit"], row["method"]) == (circuit, method)]
    return number(found[0], 3) if found else ""


def _peers(results: Mapping[str, Any]) -> dict[str, Any]:
    edges = [row for row in results["rows"] if row["kind"] == "edge"]
    return {
        "n": integer(len({row["circuit"] for row in edges})),
        "table": [
            {"method": label, "auroc": number(fmean(row["auroc"] for row in edges if row["method"] == method), 3)}
            for method, label in _EDGE_METHODS.items()
        ],
    }


def _null(results: Mapping[str, Any]) -> dict[str, Any]:
    rates = {rate["kind"]: rate for rate in results["rates"]}
    total, true = rates["all null studies"], rates["true circuits"]
    outcomes = ("holds", "partly", "not shown", "refuted")
    return {
        "n": integer(total["n"]),
        "holds": integer(total["holds"]),
        "high": _percent(total["high"]),
        "each": integer(true["n"]),
        "true_holds": integer(true["holds"]),
        "true_low": _percent(true["low"]),
        "outcomes": list(outcomes),
        "table": [
            {
                "kind": kind,
                "counts": [integer(rate[name]) for name in ("n", *outcomes)],
                "interval": f"{_percent(rate['low'])} to {_percent(rate['high'])}",
            }
            for kind, rate in rates.items()
        ],
    }


def _percent(share: float) -> str:
    return f"{number(100 * share, 1, scientific=False)}%"


def _coverage(results: Mapping[str, Any]) -> dict[str, Any]:
    rows = results["rows"]

    def held(what: str) -> str:
        return span([100 * row["held"] for row in rows if row["what"] == what], 1)

    return {
        "n": integer(results["n"]),
        "f": held("f"),
        "contrast": held("mean contrast"),
        "jaccard": held("Jaccard index"),
        "cases": integer(sum(row["what"] == "f" for row in rows)),
    }


def span(values: Sequence[float], digits: int) -> str:
    """`4.8 to 5.2`, or one number where both ends read alike."""
    low, high = number(min(values), digits, scientific=False), number(max(values), digits, scientific=False)
    return low if low == high else f"{low} to {high}"


def power(value: float) -> str:
    """A small number as `1.1 × 10⁻⁵`."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_RAISED)}"
