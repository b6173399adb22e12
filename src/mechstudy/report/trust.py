"""What a sceptical reader should know before believing a behaviour's circuit, each number with its meaning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mechstudy.report.claims import claims, excludes_zero, tests_of
from mechstudy.report.data import ReportData, UnitFiles
from mechstudy.report.formatting import ends_of, number, percent
from mechstudy.report.numbers import Address


@dataclass(frozen=True)
class TrustRow:
    """A check: what was asked, the number, what it means, and where it is kept."""

    question: str
    value: str
    meaning: str
    number: Address


def trust_rows(data: ReportData, behaviour: str) -> list[TrustRow]:
    """The checks of a behaviour, in the order of the pipeline; what was not measured is left out."""
    return [
        *_baseline(data.baselines[behaviour]),
        *_dictionaries(data),
        *_graphs(data.graphs[behaviour]),
        *_interventions(data.interventions[behaviour]),
    ]


def _baseline(unit: UnitFiles) -> Iterator[TrustRow]:
    test = (unit.json("summary.json").get("splits") or {}).get("test") or {}
    if test.get("accuracy") is None:
        return
    ends = ends_of(test.get("accuracy_ci95"))
    interval = f"[{percent(ends[0], 0)}, {percent(ends[1], 0)}]" if ends else ""
    yield TrustRow(
        "Does the model do it at all?",
        f"{percent(test['accuracy'], 0)} {interval} of {test.get('n')}",
        "Accuracy on test prompts, disjoint from those the circuit was found on.",
        unit.address("summary.json", "/splits/test"),
    )


def _dictionaries(data: ReportData) -> Iterator[TrustRow]:
    r2 = {layer: r2 for layer, unit in data.dictionaries.items() if (r2 := unit.evaluation.get("r2")) is not None}
    if not r2:
        return
    layer, worst = min(r2.items(), key=lambda item: item[1])
    yield TrustRow(
        "Do the dictionaries see what the layers do?",
        f"R² {number(worst)} to {number(max(r2.values()))}",
        f"In the worst layer {percent(1 - worst, 0)} of the variance is outside the dictionary and appears as error "
        "nodes.",
        data.dictionaries[layer].address("evaluation.json", "/r2"),
    )


def _graphs(unit: UnitFiles) -> Iterator[TrustRow]:
    scores = unit.json("scores.json")
    residual, pruned = scores.get("conservation_residual_max"), scores.get("completeness_pruned")
    if residual is not None:
        yield TrustRow(
            "Do the graphs add up?",
            number(residual, 4),
            "Largest relative residual of features + errors + tokens + biases against the metric, over all prompts; "
            "0 is exact.",
            unit.address("scores.json", "/conservation_residual_max"),
        )
    if pruned is not None:
        yield TrustRow(
            "How much of the computation is in the drawn graph?",
            f"completeness {number(pruned)}, replacement {number(scores.get('replacement_pruned'))}",
            f"{percent(1 - pruned, 0)} of the weighted influence reaches its target through error or pruned nodes: "
            "the picture is silent about that share.",
            unit.address("scores.json", "/completeness_pruned"),
        )


def _interventions(unit: UnitFiles) -> Iterator[TrustRow]:
    summary = unit.json("summary.json")
    edges, sham = summary.get("edges") or {}, summary.get("sham_max")
    if edges.get("spearman_live") is not None:
        yield TrustRow(
            "Do edges predict interventions?",
            f"Spearman {number(edges.get('spearman_frozen'))} frozen, {number(edges['spearman_live'])} live",
            f"Over {edges.get('n')} edges. Frozen checks the arithmetic; live is the model as it runs.",
            unit.address("summary.json", "/edges/spearman_live"),
        )
    controlled = [c for c in claims(unit) if c.control.ci95 is not None]
    if controlled:
        yield TrustRow(
            "Are the controls null?",
            f"{sum(not excludes_zero(c.control.ci95) for c in controlled)} of {len(controlled)}",
            "Tests whose matched controls have a CI that includes zero. All p-values are adjusted over all tests "
            "(Benjamini-Hochberg).",
            tests_of(unit),
        )
    if sham is not None:
        yield TrustRow(
            "Does an empty intervention change nothing?",
            number(sham, 5),
            "Largest change of the metric when activations are replaced by themselves; 0 is exact.",
            unit.address("summary.json", "/sham_max"),
        )
