"""The machine-readable summary of a run, and its few findings in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mechstudy.core.jsonio import jsonable
from mechstudy.dictionaries.evaluation.loss_recovered import LOSSES, UNDEFINED
from mechstudy.interventions.results import edges_of
from mechstudy.report.claims import VERDICT_WORDS, claims
from mechstudy.report.data import Address, ReportData
from mechstudy.report.formatting import interval_of, number, percent, plain

_BASELINE_FIELDS = ("n", "accuracy", "mean_logit_difference", "ci95", "passed")
_DICTIONARY_FIELDS = (
    "kind", "activation", "d_in", "d_sae", "k", "l0", "fvu", "r2", "dead_share", "ce_loss_recovered",
    "train_rows", "rows_per_second",
)  # fmt: skip
_GRAPH_FIELDS = (
    "n_prompts", "nodes", "edges", "replacement", "completeness", "replacement_pruned", "completeness_pruned",
    "replacement_among_rows", "completeness_among_rows", "conservation_residual_max",
)  # fmt: skip
_TEST_FIELDS = ("n", "effect", "ci95", "control_effect", "control_ci95", "p_adjusted")
_EDGE_FIELDS = ("n", "spearman_frozen", "spearman_direct_live", "spearman_total_live")
_QK_FIELDS = ("n", "spearman_qk", "spearman_direct_live", "spearman_total_live")
_VERDICT_FIELDS = ("outcome", "why", "size", "n_nodes", "n_test")
_CRITERION_FIELDS = ("state", "value", "ci")
_UNIT_FIELDS = ("seconds", "status", "artifact")
_CLAIMS = 3  # per behaviour, among the findings


def build_summary(data: ReportData, wall_seconds: float, peak_rss_bytes: int) -> dict[str, Any]:
    """The content of summary.json; what did not run has no key.

    Args:
        data: the study's units.
        wall_seconds: of the whole run.
        peak_rss_bytes: the largest resident set of any unit.

    Returns:
        `model`, `wall_seconds`, `peak_rss_bytes`, `baseline`, `dictionaries`, `graphs`, `interventions`,
        `edges`, `verdicts`, `units`, `findings`, as docs/reference/artifacts.md describes; no NaN.
    """
    baselines = {b: unit.json("summary.json") for b, unit in data.baselines.items()}
    interventions = {b: unit.json("summary.json") for b, unit in data.interventions.items()}
    evaluations = {layer: unit.evaluation for layer, unit in data.dictionaries.items()}
    summary: dict[str, Any] = {
        "model": data.model_name,
        "wall_seconds": wall_seconds,
        "peak_rss_bytes": peak_rss_bytes,
        "baseline": {b: _each(s.get("splits"), _BASELINE_FIELDS) for b, s in baselines.items() if s},
        "dictionaries": {str(layer): _of_dictionary(e) for layer, e in evaluations.items() if e},
        "graphs": {b: _part(s, _GRAPH_FIELDS) for b, u in data.graphs.items() if (s := u.json("scores.json"))},
        "interventions": {b: _each(s.get("tests"), _TEST_FIELDS) for b, s in interventions.items() if s},
        "edges": {b: _of_edges(edges) for b, s in interventions.items() if (edges := edges_of(s))},
        "verdicts": {b: _of_verdict(v) for b, u in data.verdicts.items() if (v := u.json("verdict.json"))},
        "units": {unit.name: _part(unit.record, _UNIT_FIELDS) for unit in data.units},
    }
    lines = [*_behaviour_findings(data, summary), *_dictionary_finding(data, summary["dictionaries"])]
    summary["findings"] = [{"text": plain(line), "number": address.handle} for line, address in lines]
    return dict(jsonable(summary))


def findings(summary: Mapping[str, Any]) -> list[str]:
    """The findings of a summary, each with the handle of its number at the end."""
    return [f"{finding['text']} [{finding['number']}]" for finding in summary.get("findings") or []]


def _part(record: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {field: record.get(field) for field in fields}


def _of_dictionary(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Its fields; where the loss recovered is undefined, also the reason and the three losses."""
    more = (UNDEFINED, *LOSSES) if evaluation.get(UNDEFINED) else ()
    return _part(evaluation, (*_DICTIONARY_FIELDS, *more))


def _of_edges(edges: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of value edges; those of edges through attention patterns under ``qk``, where any were tested."""
    qk = edges.get("qk") or {}
    return _part(edges, _EDGE_FIELDS) | ({"qk": _part(qk, _QK_FIELDS)} if qk.get("n") else {})


def _of_verdict(verdict: Mapping[str, Any]) -> dict[str, Any]:
    criteria = {c["name"]: _part(c, _CRITERION_FIELDS) for c in verdict["criteria"]}
    return _part(verdict, _VERDICT_FIELDS) | {"criteria": criteria}


def _each(records: Mapping[str, Mapping[str, Any]] | None, fields: Sequence[str]) -> dict[str, Any]:
    return {key: _part(record, fields) for key, record in (records or {}).items()}


def _behaviour_findings(data: ReportData, summary: Mapping[str, Any]) -> Iterator[tuple[str, Address]]:
    """Per behaviour its baseline, verdict, strongest claims and graphs; a claim that does not hold says so."""
    for behaviour in dict.fromkeys([*summary["baseline"], *summary["interventions"]]):
        gate = data.baselines[behaviour].json("summary.json").get("gate") or {}
        if behaviour in summary["interventions"]:
            after = ", studied all the same"
        else:  # where the gate lets it through, something else stopped it
            after = "" if gate.get("on_fail") == "continue" else ", so it was not studied further"
        if line := _baseline_finding(summary["baseline"].get(behaviour) or {}, data.baselines[behaviour].metric, after):
            yield f"{behaviour}: {line}", data.baselines[behaviour].address("summary.json", "/splits")
        if verdict := summary["verdicts"].get(behaviour):
            yield f"{behaviour}: {_verdict_finding(verdict)}", data.verdicts[behaviour].address("verdict.json")
        for claim in claims(data.interventions[behaviour])[:_CLAIMS]:
            hedge, usual = VERDICT_WORDS[claim.verdict]
            hedge = hedge.lower() + (f": {claim.why}" if claim.why != usual else "")
            if claim.verdict == "caveat":
                hedge += f": {claim.caveats[0][:1].lower()}{claim.caveats[0][1:].rstrip('.')}"
            hedge = "" if claim.verdict == "supported" else f" ({hedge})"
            yield f"{behaviour}: {claim.sentence}{hedge}", claim.number
        if graph := summary["graphs"].get(behaviour):
            line = _graph_finding(graph, summary["edges"].get(behaviour))
            yield f"{behaviour}: {line}", data.graphs[behaviour].address("scores.json")


def _baseline_finding(splits: Mapping[str, Any], metric: str, below: str) -> str:
    """``below``: what followed from a gate that was not passed."""
    if not (split := splits.get("test") or next(iter(splits.values()), None)):
        return ""
    ends = interval_of(split, "ci95", "mean_logit_difference")
    line = (
        f"the model is right on {percent(split['accuracy'], 0)} of {split['n']} prompts, "
        f"mean {metric} {number(split['mean_logit_difference'])} {ends}"
    )
    return line + (f"; below the gate{below}" if any(s.get("passed") is False for s in splits.values()) else "")


def _verdict_finding(verdict: Mapping[str, Any]) -> str:
    line = f"verdict: {verdict['outcome']} ({verdict['why']})"
    carried, lost = (verdict["criteria"][name] for name in ("sufficiency", "necessity"))
    if carried["value"] is None or lost["value"] is None:
        return line
    kept, taken = (f"{number(c['value'])} {interval_of(c, 'ci', 'value')}" for c in (carried, lost))
    return (
        f"{line}; kept alone, {verdict['size']:,} of {verdict['n_nodes']:,} nodes carry {kept} of the behaviour; "
        f"replaced, they take away {taken}"
    )


def _graph_finding(graph: Mapping[str, Any], edges: Mapping[str, Any] | None) -> str:
    completeness, replacement = number(graph["completeness"]), number(graph["replacement"])
    line = f"{graph['n_prompts']} graphs, completeness {completeness}, replacement {replacement} before pruning"
    if not edges:
        return line
    frozen, total = number(edges["spearman_frozen"]), number(edges["spearman_total_live"])
    line += f"; {edges['n']} edges checked by intervention, Spearman {frozen} with attention and norms frozen"
    if edges["spearman_direct_live"] is None:
        return f"{line}, {total} in the live model"
    line += f", {number(edges['spearman_direct_live'])} of direct effects in the live model"
    if qk := edges.get("qk"):
        line += f"; {qk['n']} edges through attention patterns, {number(qk['spearman_qk'])} with norms frozen"
        if qk["spearman_direct_live"] is not None:
            line += f", {number(qk['spearman_direct_live'])} in the live model"
    return line


def _dictionary_finding(data: ReportData, dictionaries: Mapping[str, Any]) -> Iterator[tuple[str, Address]]:
    r2 = {layer: d["r2"] for layer, d in dictionaries.items() if d["r2"] is not None}
    recovered = [d["ce_loss_recovered"] for d in dictionaries.values() if d["ce_loss_recovered"] is not None]
    if not r2:
        return
    line = f"{len(dictionaries)} dictionaries: held-out R2 {number(min(r2.values()))} to {number(max(r2.values()))}"
    if recovered:
        line += f", CE loss recovered {number(min(recovered))} to {number(max(recovered))}"
    if undefined := [layer for layer, d in dictionaries.items() if d.get(UNDEFINED)]:
        line += f"{'' if recovered else ', CE loss recovered'} (undefined in layer{'s' if undefined[1:] else ''} "
        line += f"{', '.join(undefined)})"
    if foreign := data.foreign_corpus:
        line += f"; {foreign}"
    worst = min(r2, key=r2.__getitem__)
    yield line, data.dictionaries[int(worst)].address("evaluation.json", "/r2")
