"""What a sceptical reader should know before believing a behaviour's circuit, each number with its meaning."""

from __future__ import annotations

from dataclasses import dataclass

from . import formatting
from .claims import claims, excludes_zero, tests_of
from .numbers import Address
from .source import Source


@dataclass(frozen=True)
class TrustRow:
    """A check: what was asked, the number, what it means, and where it is kept."""

    question: str
    value: str
    meaning: str
    number: Address

    @property
    def unit(self) -> str:
        """The unit that holds it."""
        return self.number.unit


def trust_rows(source: Source, behaviour: str) -> list[TrustRow]:
    """The checks of a behaviour, in the order of the pipeline; what was not measured is left out."""
    rows = [
        *_baseline(source, behaviour),
        *_dictionaries(source),
        *_graphs(source, behaviour),
        *_edges(source, behaviour),
        *_controls(source, behaviour),
        *_sham(source, behaviour),
    ]
    return rows


def _baseline(source: Source, behaviour: str) -> list[TrustRow]:
    unit = f"baseline[{behaviour}]"
    splits = (source.json(unit, "summary.json") or {}).get("splits") or {}
    test = splits.get("test")
    if not test or test.get("accuracy") is None:
        return []
    return [
        TrustRow(
            "Does the model do it at all?",
            f"{formatting.percent(test['accuracy'], 0)} {_percent_interval(test.get('accuracy_ci95'))} "
            f"of {test.get('n')}",
            "Accuracy on test prompts, disjoint from those the circuit was found on.",
            Address(unit, "summary.json", "/splits/test"),
        )
    ]


def _percent_interval(ci: list[float] | None) -> str:
    return (
        f"[{formatting.percent(ci[0], 0)}, {formatting.percent(ci[1], 0)}]"
        if ci and formatting.has_interval(ci)
        else ""
    )


def _dictionaries(source: Source) -> list[TrustRow]:
    r2 = {layer: e["r2"] for layer in source.layers if (e := source.evaluation(layer)).get("r2") is not None}
    if not r2:
        return []
    layer, worst = min(r2.items(), key=lambda item: item[1])
    return [
        TrustRow(
            "Do the dictionaries see what the layers do?",
            f"R² {formatting.number(worst)} to {formatting.number(max(r2.values()))}",
            f"In the worst layer {formatting.percent(1 - worst, 0)} of the variance is outside the dictionary and "
            "appears as error nodes.",
            Address(f"train[{layer}]", "evaluation.json", "/r2"),
        )
    ]


def _graphs(source: Source, behaviour: str) -> list[TrustRow]:
    unit = f"attribute[{behaviour}]"
    scores = source.json(unit, "scores.json") or {}
    rows = []
    if scores.get("conservation_residual_max") is not None:
        rows.append(
            TrustRow(
                "Do the graphs add up?",
                formatting.number(scores["conservation_residual_max"], 4),
                "Largest relative residual of features + errors + tokens + biases against the metric, over all "
                "prompts; 0 is exact.",
                Address(unit, "scores.json", "/conservation_residual_max"),
            )
        )
    pruned = scores.get("completeness_pruned")
    if pruned is not None:
        rows.append(
            TrustRow(
                "How much of the computation is in the drawn graph?",
                f"completeness {formatting.number(pruned)}, "
                f"replacement {formatting.number(scores.get('replacement_pruned'))}",
                f"{formatting.percent(1 - pruned, 0)} of the weighted influence reaches its target through error or "
                "pruned nodes: the picture is silent about that share.",
                Address(unit, "scores.json", "/completeness_pruned"),
            )
        )
    return rows


def _edges(source: Source, behaviour: str) -> list[TrustRow]:
    unit = f"intervene[{behaviour}]"
    edges = (source.json(unit, "summary.json") or {}).get("edges") or {}
    if edges.get("spearman_live") is None:
        return []
    return [
        TrustRow(
            "Do edges predict interventions?",
            f"Spearman {formatting.number(edges.get('spearman_frozen'))} frozen, "
            f"{formatting.number(edges['spearman_live'])} live",
            f"Over {edges.get('n')} edges. Frozen checks the arithmetic; live is the model as it runs.",
            Address(unit, "summary.json", "/edges/spearman_live"),
        )
    ]


def _controls(source: Source, behaviour: str) -> list[TrustRow]:
    found = [c for c in claims(source, behaviour) if c.control_ci95 is not None]
    if not found:
        return []
    clean = sum(not excludes_zero(c.control_ci95) for c in found)
    return [
        TrustRow(
            "Are the controls null?",
            f"{clean} of {len(found)}",
            "Tests whose matched controls have a CI that includes zero. All p-values are adjusted over all tests "
            "(Benjamini-Hochberg).",
            tests_of(behaviour),
        )
    ]


def _sham(source: Source, behaviour: str) -> list[TrustRow]:
    unit = f"intervene[{behaviour}]"
    sham = (source.json(unit, "summary.json") or {}).get("sham_max")
    if sham is None:
        return []
    return [
        TrustRow(
            "Does an empty intervention change nothing?",
            formatting.number(sham, 5),
            "Largest change of the metric when activations are replaced by themselves; 0 is exact.",
            Address(unit, "summary.json", "/sham_max"),
        )
    ]
