"""Charts of prompts, baselines, dictionaries, graphs and units, as altair specs without data frames."""

# ruff: noqa: RUF001 - minus signs and Greek letters are what the axes show

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from mechstudy.report.formatting import real

MAX_CURVE_POINTS = 160  # per layer: more than a screen shows


def chart(rows: list[dict[str, Any]]) -> alt.Chart:
    """A chart of rows, kept in its spec."""
    return alt.Chart(alt.InlineData(values=rows))


def sized(drawn: Any, height: int) -> alt.TopLevelMixin:
    """A chart as wide as its place on the page."""
    result: alt.TopLevelMixin = drawn.properties(width="container", height=height)
    return result


def zero_rule(axis: str) -> alt.Chart:
    """A line at zero across the chart."""
    mark = chart([{"zero": 0}]).mark_rule(color="@zero", strokeWidth=1)
    rule: alt.Chart = mark.encode(x=alt.XDatum(0)) if axis == "x" else mark.encode(y=alt.YDatum(0))
    return rule


def logit_differences(splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> alt.TopLevelMixin | None:
    """Histogram of per-prompt logit differences, one colour per split; right of zero is correct."""
    values: list[dict[str, Any]] = [
        {"split": split, "d": d} for split, rows in splits.items() for r in rows
        if (d := real(r.get("logit_difference"))) is not None
    ]  # fmt: skip
    if not values:
        return None
    low, high = min(v["d"] for v in values), max(v["d"] for v in values)
    step = _nice_step((high - low) / 24 or 1)
    counts = Counter((v["split"], math.floor(v["d"] / step)) for v in values)
    rows = [
        {"split": s, "start": round(b * step, 6), "end": round((b + 1) * step, 6), "prompts": c}
        for (s, b), c in sorted(counts.items())
    ]
    order = list(splits)
    colours = alt.Scale(domain=order, range=["@effect", "@compare"])
    bars = (
        chart(rows)
        .mark_bar(opacity=0.75, binSpacing=1)
        .encode(
            x=alt.X("start:Q", title="logit difference: answer − wrong answer (nats)", bin="binned"),
            x2="end:Q",
            y=alt.Y("prompts:Q", title="prompts", stack=True, axis=alt.Axis(tickMinStep=1)),
            color=alt.Color("split:N", title="split", sort=order, scale=colours),
            tooltip=["split:N", "start:Q", "end:Q", "prompts:Q"],
        )
    )
    return sized(zero_rule("x") + bars, 220)


def accuracy(splits: Mapping[str, Mapping[str, Any]], gate: float | None) -> alt.TopLevelMixin | None:
    """Accuracy with its 95% CI per split, against the gate."""
    rows = [
        {"split": f"{name} (n = {s.get('n')})", "accuracy": s["accuracy"], "low": ci[0], "high": ci[1]}
        for name, s in splits.items()
        if s.get("accuracy") is not None and (ci := s.get("accuracy_ci95") or [s["accuracy"]] * 2)
    ]
    if not rows:
        return None
    base = chart(rows).encode(y=alt.Y("split:N", title=None, sort=None))
    scale = alt.Scale(domain=[min(0.4, *(r["low"] for r in rows)), 1])
    x = alt.X("accuracy:Q", title="accuracy (95% CI)", scale=scale, axis=alt.Axis(format="%"))
    layers = [
        base.mark_rule(color="@effect", strokeWidth=2.5).encode(x=alt.X("low:Q", scale=scale), x2="high:Q"),
        base.mark_point(color="@effect", size=90).encode(
            x=x, tooltip=["split:N", alt.Tooltip("accuracy:Q", format=".1%")]
        ),
    ]
    if gate is not None:
        rule = chart([{"gate": gate}]).mark_rule(color="@neg", strokeDash=[5, 4])
        layers.insert(0, rule.encode(x=alt.X("gate:Q", scale=scale)))
    return sized(alt.layer(*layers), 36 * len(rows) + 24)


@dataclass(frozen=True)
class Metric:
    """A field of evaluation.json: its axis label, what it means, and the range of its axis."""

    field: str
    label: str
    caption: str
    domain: tuple[float, float] | None = None


DICTIONARY_METRICS = (
    Metric("r2", "held-out R² (1 − FVU)", "1 − FVU against the vector mean, on held-out rows.", (0, 1)),
    Metric(
        "ce_loss_recovered",
        "CE loss recovered",
        "1: splicing the dictionary in costs nothing; 0: as bad as zero-ablating the layer.",
        (0, 1),
    ),
    Metric("l0", "L0: active features per token", "Mean number of active features per token."),
    Metric("dead_share", "share of dead features", "Features that never fired on the evaluation rows."),
)


def over_layers(evaluations: Mapping[int, Mapping[str, Any]], metric: Metric) -> alt.TopLevelMixin | None:
    """One metric of the dictionaries over the layers."""
    rows = [{"layer": layer, "v": v} for layer, e in evaluations.items() if (v := e.get(metric.field)) is not None]
    if not rows:
        return None
    fixed = metric.domain is not None and min(r["v"] for r in rows) >= 0
    scale = alt.Scale(domain=list(metric.domain)) if metric.domain and fixed else alt.Scale(zero=True)
    base = chart(rows).encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("v:Q", title=metric.label, scale=scale),
        tooltip=["layer:O", alt.Tooltip("v:Q", title=metric.label, format=".4~g")],
    )
    return sized(base.mark_bar(color="@effect", opacity=0.8, cornerRadiusEnd=2), 180)


def loss_curves(scalars: Mapping[int, Sequence[Mapping[str, Any]]], field: str = "fvu") -> alt.TopLevelMixin | None:
    """Training curves of all layers over the steps."""
    rows = []
    for layer, log in scalars.items():
        points = [(r["step"], real(r.get(field))) for r in log if r.get("step") is not None]
        stride = max(1, math.ceil(len(points) / MAX_CURVE_POINTS))
        rows += [{"layer": layer, "step": s, "v": round(v, 5)} for s, v in points[::stride] if v is not None]
    if not rows:
        return None
    title = {"fvu": "FVU on training rows", "loss": "loss"}.get(field, field)
    x, y = alt.X("step:Q", title="optimisation step"), alt.Y("v:Q", title=title, scale=alt.Scale(zero=False))
    return _lines(rows, x, y, ["layer:O", "step:Q", alt.Tooltip("v:Q", title=title)], sorted(scalars))


def density_histograms(evaluations: Mapping[int, Mapping[str, Any]]) -> alt.TopLevelMixin | None:
    """How often features fire, one line per layer."""
    rows = []
    for layer, evaluation in evaluations.items():
        histogram = evaluation.get("density_histogram") or {}
        edges, counts = histogram.get("edges") or [], histogram.get("counts") or []
        total = sum(counts) or 1
        rows += [
            {"layer": layer, "x": round((edges[i] + edges[i + 1]) / 2, 4), "share": c / total}
            for i, c in enumerate(counts[: len(edges) - 1])
        ]
    if not rows:
        return None
    x = alt.X("x:Q", title="log₁₀ share of tokens on which a feature fires")
    y = alt.Y("share:Q", title="share of features", axis=alt.Axis(format="%"))
    return _lines(rows, x, y, ["layer:O", "x:Q", alt.Tooltip("share:Q", format=".1%")], sorted(evaluations))


def _lines(
    rows: list[dict[str, Any]], x: alt.X, y: alt.Y, tooltip: list[Any], layers: Sequence[int]
) -> alt.TopLevelMixin:
    """A line per layer, in a sequential colour for the depth."""
    scale = alt.Scale(domain=[layers[0], max(layers[-1], layers[0] + 1)], range=["@seq0", "@seq1", "@seq2"])
    legend = alt.Legend(title="layer", gradientLength=140, format="d", tickMinStep=1)
    colour = alt.Color("layer:Q", scale=scale, legend=legend)
    line = chart(rows).mark_line(interpolate="monotone")
    return sized(line.encode(x=x, y=y, color=colour, tooltip=tooltip), 240)


def graph_scores(per_prompt: Sequence[Mapping[str, Any]]) -> alt.TopLevelMixin | None:
    """Completeness and replacement of each prompt's graph, full and pruned."""
    fields = [
        ("completeness", "completeness, full"), ("completeness_pruned", "completeness, pruned"),
        ("replacement", "replacement, full"), ("replacement_pruned", "replacement, pruned"),
    ]  # fmt: skip
    rows = [
        {"score": label, "v": v, "prompt": str(p.get("slug"))}
        for p in per_prompt for f, label in fields if (v := p.get(f)) is not None
    ]  # fmt: skip
    if not rows:
        return None
    base = chart(rows).encode(y=alt.Y("score:N", title=None, sort=[label for _, label in fields]))
    x = alt.X(
        "v:Q",
        title="score (1 = nothing left to error nodes)",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(tickCount=6),
    )
    ticks = base.mark_tick(color="@effect", opacity=0.5, thickness=2, size=18).encode(
        x=x, tooltip=["prompt:N", alt.Tooltip("v:Q", format=".3f")]
    )
    median = base.mark_point(color="@ink", size=70, shape="diamond").encode(x=alt.X("median(v):Q"))
    return sized(ticks + median, 150)


def unit_bars(units: Sequence[Mapping[str, Any]], field: str, label: str, scale: float) -> alt.TopLevelMixin | None:
    """Time or memory of each unit."""
    rows = [
        {"unit": str(u["name"]), "phase": str(u.get("phase") or ""), "v": v * scale}
        for u in units if (v := real(u.get(field))) is not None
    ]  # fmt: skip
    if not rows:
        return None
    base = chart(rows).encode(
        y=alt.Y("unit:N", title=None, sort=None, axis=alt.Axis(labelLimit=220)),
        x=alt.X("v:Q", title=label, axis=alt.Axis(tickCount=5)),
        tooltip=["unit:N", "phase:N", alt.Tooltip("v:Q", title=label, format=",.3~f")],
    )
    bars = base.mark_bar(color="@effect", opacity=0.8, cornerRadiusEnd=2)
    texts = base.mark_text(align="left", dx=4, fontSize=10, color="@muted").encode(text=alt.Text("v:Q", format=",.3~g"))
    return sized(bars + texts, max(80, 18 * len(rows)))


def _nice_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
