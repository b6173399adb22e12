"""Numbers of a finished run, as the text shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mechstudy.report.formatting import (
    NOT_AVAILABLE,
    beside,
    duration,
    integer,
    interval_of,
    number,
    p_value,
    percent,
    plain,
    size,
    title,
)
from mechstudy.report.members_picture import members_of
from paper.finished import FinishedRun
from paper.stored import power, span

KEYS = ("a", "b")  # what the text calls the two behaviours
_STRONGEST = 5
_INTERVENTIONS = {
    "ablation_zero": "set to zero",
    "ablation_mean": "set to their means",
    "resampling": "of another prompt",
    "patching": "of the corrupted prompt",
    "steering": "steering, slope",
}
_RIVALS = ("gradient alone", "EAP-IG", "top activations", "difference of means")


def run_numbers(run: FinishedRun) -> dict[str, Any]:
    """Everything that the text says of a run, as text: in `a` and `b` what is of one behaviour."""
    return {
        "run": _run(run),
        "study": _study(run),
        "dictionaries": _dictionaries(run.summary["dictionaries"]),
        "labels": _labels(run.unit("features").json("features.json").get("labels") or {}),
        "asked": _asked(run.verdict(run.behaviours[0])),
        **{key: _behaviour(run, name) for key, name in zip(KEYS, run.behaviours, strict=True)},
    }


def _run(run: FinishedRun) -> dict[str, Any]:
    newest = next(run.of_phase("features")).manifest
    provenance, runtime = newest["provenance"], newest["runtime"]
    model = run.unit("model").json("model.json")
    units: dict[str, list[Mapping[str, Any]]] = {}
    for name, unit in run.summary["units"].items():
        units.setdefault(name.partition("[")[0], []).append(unit)
    seconds = {phase: sum(unit["seconds"] or 0 for unit in some) for phase, some in units.items()}
    git = provenance.get("git") or {}
    return {
        "model": model["name"],
        "parameters": integer(model["n_parameters"]),
        "layers": integer(model["n_layers"]),
        "heads": integer(model["n_heads"]),
        "width": integer(model["d_model"]),
        "time": duration(sum(seconds.values())),
        "memory": size(run.summary["peak_rss_bytes"]),
        "cpu": str((provenance.get("cpu") or {}).get("model") or NOT_AVAILABLE),
        "threads": integer(runtime.get("threads")),
        "version": str(provenance["mechstudy"]),
        "commit": str(git.get("commit") or NOT_AVAILABLE)[:7],
        "phases": {phase: duration(spent) for phase, spent in seconds.items()},
        "units": integer(sum(map(len, units.values()))),
    }


def _study(run: FinishedRun) -> dict[str, Any]:
    train, corpus = run.spec("train"), run.spec("corpus")
    attribute, verdict, intervene = run.spec("attribute"), run.spec("verdict"), run.spec("intervene")
    layers = sorted(int(layer) for layer in run.summary["dictionaries"])
    first = next(iter(run.summary["dictionaries"].values()))
    return {
        "tokens": integer(corpus["tokens"]),
        "layers": ", ".join(map(str, layers)),
        "n_layers": integer(len(layers)),
        "features": integer(first["d_sae"]),
        "k": integer(first["k"]),
        "steps": integer(train["training"]["steps"]),
        "batch": integer(train["training"]["batch_size"]),
        "graph_prompts": integer(attribute["n_prompts"]),
        "max_features": integer(attribute["max_features"]),
        "ig_steps": integer(verdict["steps"]),
        "aim": number(verdict["aim"], 2),
        "random": integer(verdict["n_random"]),
        "halves": integer(verdict["resamples"]),
        "group": integer(intervene["group_size"]),
        "permutations": integer(intervene["permutations"]),
    }


def _dictionaries(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    by_layer = sorted(evaluations.items(), key=lambda item: int(item[0]))
    recovered = [e["ce_loss_recovered"] for _, e in by_layer if e["ce_loss_recovered"] is not None]
    return {
        "r2": span([e["r2"] for _, e in by_layer], 2),
        "l0": span([e["l0"] for _, e in by_layer], 1),
        "recovered": span(recovered, 2) if recovered else NOT_AVAILABLE,
        "dead": percent(max(e["dead_share"] for _, e in by_layer)),
        "table": [
            {
                "layer": layer,
                "r2": number(e["r2"], 3),
                "l0": number(e["l0"], 1),
                "dead": percent(e["dead_share"]),
                "recovered": number(e["ce_loss_recovered"], 3),
            }
            for layer, e in by_layer
        ],
    }


def _labels(claims: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "n": integer(claims.get("n")),
        "claimed": integer(claims.get("n_claimed")),
        "score": number(claims.get("median_claimed"), 2),
        "shuffled": number(claims.get("median_shuffled"), 2),
        "all": number(claims.get("median_score"), 2),
        "ahead": percent(claims.get("auroc"), 0),
    }


def _asked(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The threshold of each criterion."""
    return {
        "n": integer(len(verdict["criteria"])),
        **{c["name"]: f"{'at most' if c['at_most'] else 'at least'} {c['threshold']:g}" for c in verdict["criteria"]},
        "behaviour": "above 0",
    }


def _behaviour(run: FinishedRun, name: str) -> dict[str, Any]:
    summary, record = run.summary, run.verdict(name)
    pair = run.unit("prompts", name).rows("train.jsonl")[0]
    split = summary["baseline"][name]["test"]
    graph = summary["graphs"][name]
    return {
        "name": name,
        "title": title(name),
        "words": plain(name).replace("_", " "),
        "clean": plain(pair["clean"]),
        "corrupted": plain(pair["corrupted"] or ""),
        "answer": plain(pair["answer"]).strip(),
        "wrong": plain(pair["wrong_answer"]).strip(),
        "n": integer(split["n"]),
        "accuracy": percent(split["accuracy"], 0),
        "difference": _with_interval(split, "mean_logit_difference", "ci95"),
        "graphs": {
            "n": integer(graph["n_prompts"]),
            "replacement": number(graph["replacement"], 3),
            "completeness": number(graph["completeness"], 3),
            "among_rows": f"{number(graph['replacement_among_rows'], 3)} / "
            f"{number(graph['completeness_among_rows'], 3)}",
            "residual": power(graph["conservation_residual_max"]),
            "nodes": number(graph["nodes"], 0),
            "edges": number(graph["edges"], 0),
        },
        "edges": _edges(summary["edges"].get(name) or {}),
        "interventions": _interventions(summary["interventions"][name]),
        "verdict": _verdict(record, summary["verdicts"][name]),
    }


def _edges(edges: Mapping[str, Any]) -> dict[str, Any]:
    qk = edges.get("qk") or {}
    return {
        "n": integer(edges.get("n")),
        "frozen": number(edges.get("spearman_frozen"), 3),
        "direct": number(edges.get("spearman_direct_live"), 2),
        "total": number(edges.get("spearman_total_live"), 2),
        "qk": number(qk.get("spearman_qk"), 2),
        "qk_direct": number(qk.get("spearman_direct_live"), 2),
        "qk_total": number(qk.get("spearman_total_live"), 2),
    }


def _interventions(tests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    rows = {
        kind: {
            "what": _INTERVENTIONS.get(kind, title(kind).lower()),
            "n": integer(test["n"]),
            "effect": _with_interval(test, "effect", "ci95"),
            "control": number(test["control_effect"], 3, scientific=False),
            "p": p_value(test["p_adjusted"]).removeprefix("p ").removeprefix("= "),
        }
        for kind, test in tests.items()
    }
    return {**rows, "table": list(rows.values())}


def _verdict(record: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    criteria = {name: _criterion(c) for name, c in summary["criteria"].items()}
    rivals = [row for row in record["rivals"] if row["circuit"] in _RIVALS]
    random = [row["f"] for row in record["rivals"] if row["circuit"].startswith("random") and row["f"] is not None]
    members = members_of(record["members"])
    equal = record["equivalence"]
    return {
        "outcome": summary["outcome"],
        "why": summary["why"],
        "size": integer(summary["size"]),
        "n_nodes": integer(summary["n_nodes"]),
        "share": percent(summary["size"] / summary["n_nodes"], 1),
        "n_train": integer(record["n_train"]),
        "n_test": integer(summary["n_test"]),
        "criteria": criteria,
        "rivals": [
            {"circuit": "random, the best", "f": number(max(random, default=None), 2, scientific=False), "ahead": ""},
            *(
                {
                    "circuit": row["circuit"],
                    "f": number(row["f"], 2, scientific=False),
                    "ahead": _ahead(row),
                }
                for row in rivals
            ),
        ],
        "replaced": {row["replaced_by"]: number(row["f"], 2, scientific=False) for row in record["by_replacement"]},
        "jaccard": number(record["stability"]["jaccard"], 2),
        "core": integer(record["stability"]["core"]),
        "above": percent(equal["above"], 0),
        "p_equal": p_value(equal["p"]),
        "specifications": integer(len(record["specifications"])),
        "strongest": _listed(f"{m.short} at {plain(m.position)}" for m in members[:_STRONGEST]),
    }


def _criterion(c: Mapping[str, Any]) -> dict[str, Any]:
    if c["value"] is None:
        return {"state": c["state"], "value": "not asked" if c["state"] == "not measured" else NOT_AVAILABLE}
    return {"state": c["state"], "value": _with_interval(c, "value", "ci") if c["ci"] else number(c["value"], 2)}


def _ahead(row: Mapping[str, Any]) -> str:
    if row["ahead"] is None:
        return NOT_AVAILABLE
    ends: Sequence[float | None] = (row["low"], row["high"])
    return f"{beside(row['ahead'], ends)} {interval_of({**row, 'ci': ends}, 'ci', 'ahead')}"


def _with_interval(record: Mapping[str, Any], value: str, ci: str) -> str:
    """`0.86 [0.78, 0.94]`."""
    return f"{beside(record[value], record[ci])} {interval_of(record, ci, value)}"


def _listed(words: Iterable[str]) -> str:
    *most, last = list(words) or [NOT_AVAILABLE]
    return f"{', '.join(most)} and {last}" if most else last
