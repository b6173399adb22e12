"""Charts of baselines, dictionaries, graphs, interventions and units, as altair specs without data frames."""

# ruff: noqa: RUF001 - minus signs and Greek letters are what the axes show

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from mechstudy.report.claims import Measured
from mechstudy.report.data import UnitFiles
from mechstudy.report.formatting import ends_of, interval, interval_or_reason, no_interval, plain, real

MAX_CURVE_POINTS = 160  # per layer: more than a screen shows
DIRECTIONS = {
    "features": "circuit's features",
    "random": "random (control)",
    "difference_of_means": "difference of means",
}
_CI = alt.Tooltip("ci:N", title="interval")
_MEAN_AND_INTERVAL = (alt.Tooltip("v:Q", title="mean", format=".3f"), _CI, alt.Tooltip("n:Q"))


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


def logit_differences(splits: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> alt.TopLevelMixin | None:
    """Histogram of per-prompt values of the metric, one colour per split; right of zero is correct."""
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
    x = alt.X("start:Q", title=f"{metric}: answer − wrong answer (nats)", bin="binned")
    y = alt.Y("prompts:Q", title="prompts", stack=True, axis=alt.Axis(tickMinStep=1))
    colours = alt.Scale(domain=order, range=["@effect", "@compare"])
    colour = alt.Color("split:N", title="split", sort=order, scale=colours)
    tooltip = [alt.Tooltip("split:N"), alt.Tooltip("start:Q"), alt.Tooltip("end:Q"), alt.Tooltip("prompts:Q")]
    bars = chart(rows).mark_bar(opacity=0.75, binSpacing=1)
    return sized(zero_rule("x") + bars.encode(x=x, x2=alt.X2("end:Q"), y=y, color=colour, tooltip=tooltip), 220)


def accuracy(splits: Mapping[str, Mapping[str, Any]], gate: float | None) -> alt.TopLevelMixin | None:
    """Accuracy with its 95% CI per split, against the gate."""
    rows = [
        {"split": f"{name} (n = {s.get('n')})", "accuracy": s["accuracy"]}
        | _ends(*interval_or_reason(s, "accuracy_ci95", "accuracy"))
        for name, s in splits.items()
        if s.get("accuracy") is not None
    ]
    if not rows:
        return None
    base = chart(rows).encode(y=alt.Y("split:N", title=None, sort=None))
    scale = alt.Scale(domain=[min(0.4, *(r.get("low", r["accuracy"]) for r in rows)), 1])
    x = alt.X("accuracy:Q", title=f"accuracy ({_shown(rows, '95% CI')})", scale=scale, axis=alt.Axis(format="%"))
    tooltip = [alt.Tooltip("split:N"), alt.Tooltip("accuracy:Q", format=".1%"), _CI]
    bars = _with_ends(base).mark_rule(color="@effect", strokeWidth=2.5)
    bars = bars.encode(x=alt.X("low:Q", scale=scale), x2=alt.X2("high:Q"))
    points = base.mark_point(color="@effect", size=90).encode(x=x, tooltip=tooltip)
    rule = chart([{"gate": gate}]).mark_rule(color="@neg", strokeDash=[5, 4]).encode(x=alt.X("gate:Q", scale=scale))
    marks = [*([] if gate is None else [rule]), bars, points, *_reasons(rows, base, x)]
    return sized(alt.layer(*marks), 36 * len(rows) + 24)


# Fields of evaluation.json: the label of the axis, and its range.
DICTIONARY_METRICS: dict[str, tuple[str, tuple[float, float] | None]] = {
    "r2": ("held-out R² (1 − FVU)", (0, 1)),
    "ce_loss_recovered": ("CE loss recovered", (0, 1)),
    "l0": ("L0: active features per token", None),
    "dead_share": ("share of dead features", None),
}


def over_layers(
    evaluations: Mapping[int, Mapping[str, Any]], field: str, label: str, domain: tuple[float, float] | None
) -> alt.TopLevelMixin | None:
    """One metric of the dictionaries over the layers; its axis has ``domain`` unless a value is negative."""
    rows = [{"layer": layer, "v": v} for layer, e in evaluations.items() if (v := e.get(field)) is not None]
    if not rows:
        return None
    scale = alt.Scale(domain=domain) if domain and min(r["v"] for r in rows) >= 0 else alt.Scale(zero=True)
    x = alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0))
    tooltip = [alt.Tooltip("layer:O"), alt.Tooltip("v:Q", title=label, format=".4~g")]
    base = chart(rows).encode(x=x, y=alt.Y("v:Q", title=label, scale=scale), tooltip=tooltip)
    return sized(base.mark_bar(color="@effect", opacity=0.8, cornerRadiusEnd=2), 180)


def loss_curves(scalars: Mapping[int, Sequence[Mapping[str, Any]]]) -> alt.TopLevelMixin | None:
    """Training curves of all layers over the steps."""
    rows = []
    for layer, log in scalars.items():
        points = [(r["step"], real(r.get("fvu"))) for r in log if r.get("step") is not None]
        stride = max(1, math.ceil(len(points) / MAX_CURVE_POINTS))
        rows += [{"layer": layer, "step": s, "v": round(v, 5)} for s, v in points[::stride] if v is not None]
    if not rows:
        return None
    title = "FVU on training rows"
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
    ends = {"": "full", "_pruned": "pruned"}
    labels = {f"{s}{end}": f"{s}, {label}" for s in ("completeness", "replacement") for end, label in ends.items()}
    rows = [
        {"score": label, "v": v, "prompt": str(p.get("slug"))}
        for p in per_prompt for field, label in labels.items() if (v := p.get(field)) is not None
    ]  # fmt: skip
    if not rows:
        return None
    base = chart(rows).encode(y=alt.Y("score:N", title=None, sort=list(labels.values())))
    title, scale = "score (1 = nothing left to error nodes)", alt.Scale(domain=[0, 1])
    x = alt.X("v:Q", title=title, scale=scale, axis=alt.Axis(tickCount=6))
    tooltip = [alt.Tooltip("prompt:N"), alt.Tooltip("v:Q", format=".3f")]
    ticks = base.mark_tick(color="@effect", opacity=0.5, thickness=2, size=18).encode(x=x, tooltip=tooltip)
    median = base.mark_point(color="@ink", size=70, shape="diamond").encode(x=alt.X("median(v):Q"))
    return sized(ticks + median, 150)


def unit_bars(units: Sequence[UnitFiles], field: str, label: str, scale: float) -> alt.TopLevelMixin | None:
    """Time or memory of each unit."""
    rows = [
        {"unit": u.name, "phase": str(u.record.get("phase") or ""), "v": v * scale}
        for u in units if (v := real(u.record.get(field))) is not None
    ]  # fmt: skip
    if not rows:
        return None
    x = alt.X("v:Q", title=label, axis=alt.Axis(tickCount=5))
    y = alt.Y("unit:N", title=None, sort=None, axis=alt.Axis(labelLimit=220))
    tooltip = [alt.Tooltip("unit:N"), alt.Tooltip("phase:N"), alt.Tooltip("v:Q", title=label, format=",.3~f")]
    base = chart(rows).encode(y=y, x=x, tooltip=tooltip)
    bars = base.mark_bar(color="@effect", opacity=0.8, cornerRadiusEnd=2)
    texts = base.mark_text(align="left", dx=4, fontSize=10, color="@muted").encode(text=alt.Text("v:Q", format=",.3~g"))
    return sized(bars + texts, max(80, 18 * len(rows)))


def forest(
    tests: Iterable[tuple[str, int | None, Measured, Measured]], metric: str, ci_name: str = "95% CI"
) -> alt.TopLevelMixin | None:
    """Effect and matched control of each test or group (its name and n before them), with intervals around zero."""
    rows = [
        {"test": _wrapped(name), "role": role, "v": measured.mean, **_ends(measured.ci95, measured.missing), "n": n}
        for name, n, *both in tests
        for role, measured in zip(("top features", "matched control"), both, strict=True)
        if measured.mean is not None
    ]
    if not rows:
        return None
    roles = ["top features", "matched control"]
    color = alt.Color("role:N", title=None, scale=alt.Scale(domain=roles, range=["@effect", "@control"]))
    offset = alt.YOffset("role:N", scale=alt.Scale(domain=roles, paddingOuter=0.55))
    axis = alt.Axis(labelLimit=260, grid=False, labelExpr="split(datum.label, '\\n')", labelLineHeight=13)
    y = alt.Y("test:N", title=None, sort=None, axis=axis)
    base = chart(rows).encode(y=y, yOffset=offset, color=color)
    tooltip = [alt.Tooltip("test:N"), alt.Tooltip("role:N"), *_MEAN_AND_INTERVAL]
    shape = alt.Shape("role:N", title=None, scale=alt.Scale(domain=roles, range=["circle", "diamond"]))
    x = alt.X("v:Q", title=f"mean change of the {metric} ({_shown(rows, ci_name)})", axis=alt.Axis(tickCount=8))
    bars = _with_ends(base).mark_rule(strokeWidth=2.5).encode(x=alt.X("low:Q"), x2=alt.X2("high:Q"), tooltip=tooltip)
    points = base.mark_point(size=70, opacity=1).encode(x=x, shape=shape, tooltip=tooltip)
    n_tests = len({r["test"] for r in rows})
    marks = [zero_rule("x"), bars, points, *_reasons(rows, base, x)]
    return sized(alt.layer(*marks), max(90, (46 if n_tests < 8 else 34) * n_tests))


def _wrapped(label: str) -> str:
    """At most three lines for the axis."""
    return "\n".join(textwrap.wrap(plain(label), 30, max_lines=3, placeholder="…"))


def _ends(ends: Sequence[float] | None, missing: str | None) -> dict[str, Any]:
    """Both ends of an interval and their text; only the reason where there is none."""
    if ends is None:
        return {"ci": no_interval(missing)}
    return {"low": ends[0], "high": ends[1], "ci": interval(ends, 3)}


def _with_ends(base: alt.Chart) -> alt.Chart:
    """The rows that have an interval, for the marks that draw one."""
    kept: alt.Chart = base.transform_filter("isValid(datum.low)")
    return kept


def _shown(rows: Sequence[Mapping[str, Any]], ci_name: str) -> str:
    """What an axis says of the rows' intervals."""
    return ci_name if any("low" in row for row in rows) else "no interval"


def _reasons(rows: Sequence[Mapping[str, Any]], base: alt.Chart, x: alt.X) -> list[alt.Chart]:
    """Beside each point without an interval, why it has none; nothing where all have one."""
    if all("low" in row for row in rows):
        return []
    texts = base.transform_filter("!isValid(datum.low)").mark_text(align="left", dx=9, fontSize=10, color="@muted")
    return [texts.encode(x=x, text=alt.Text("ci:N"))]


def dose_response(summary: Mapping[str, Any], ci_name: str = "95% CI") -> alt.TopLevelMixin | None:
    """Change of the metric over the steering coefficient, features against both baselines."""
    rows = [
        {"direction": DIRECTIONS.get(str(r.get("direction")), str(r.get("direction"))), "alpha": r["alpha"]}
        | {"v": effect, **_ends(*_band(r)), "n": r.get("n")}
        for r in summary.get("dose_response") or [] if (effect := real(r.get("effect"))) is not None
    ]  # fmt: skip
    if not rows:
        return None
    names = list(dict.fromkeys([*DIRECTIONS.values(), *(r["direction"] for r in rows)]))
    scale = alt.Scale(domain=names, range=["@effect", "@control", "@compare"])
    colour = alt.Color("direction:N", title=None, scale=scale)
    base = chart(rows).encode(x=alt.X("alpha:Q", title="steering coefficient α"), color=colour)
    y = alt.Y("v:Q", title=f"change of the {summary.get('metric', 'logit difference')} ({_shown(rows, ci_name)})")
    band = _with_ends(base).mark_area(opacity=0.18).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"))
    dash = alt.StrokeDash("direction:N", title=None, scale=alt.Scale(domain=names, range=[[1, 0], [5, 3], [2, 2]]))
    line = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash)
    tooltip = [alt.Tooltip("direction:N"), alt.Tooltip("alpha:Q"), *_MEAN_AND_INTERVAL]
    points = base.mark_point(size=36, opacity=1).encode(y=alt.Y("v:Q"), tooltip=tooltip)
    return sized(zero_rule("y") + zero_rule("x") + band + line + points, 280)


def _band(entry: Mapping[str, Any]) -> tuple[Sequence[float] | None, str | None]:
    """The interval of a dose; of dose 0, which changes nothing, the two equal ends that close the band."""
    if entry.get("alpha") == 0 and (ends := ends_of(entry.get("ci95"))):
        return ends, None
    return interval_or_reason(entry, "ci95", "effect")


def patching(summary: Mapping[str, Any]) -> alt.TopLevelMixin | None:
    """Share of the clean-corrupted gap that patching one layer at one position removes."""
    block = summary.get("patching") or {}
    layers, positions = block.get("layers") or [], block.get("positions") or []
    rows = [
        {"layer": layer, "position": plain(str(position)), "v": effect}
        for layer, line in zip(layers, block.get("effect") or [], strict=False)
        for position, effect in zip(positions, line, strict=False)
        if effect is not None
    ]
    if not rows:
        return None
    reach = max(0.1, max(abs(r["v"]) for r in rows))
    scale = alt.Scale(domain=[-reach, 0, reach], range=["@neg", "@mid", "@pos"], interpolate="rgb")
    legend = alt.Legend(format=".0%", gradientLength=200)
    colour = alt.Color("v:Q", title="share of the gap removed", scale=scale, legend=legend)
    x = alt.X("position:N", title="position", sort=None, axis=alt.Axis(labelAngle=-30))
    y = alt.Y("layer:O", title="layer", sort="descending")
    tooltip = [alt.Tooltip("layer:O"), alt.Tooltip("position:N"), alt.Tooltip("v:Q", title="removed", format=".1%")]
    drawn = chart(rows).encode(x=x, y=y, tooltip=tooltip).mark_rect().encode(color=colour)
    return sized(drawn, max(160, 20 * len(layers)))


# What is drawn of edges: the heading, and for each kind the predictions that add up and what was measured.
EDGE_FIGURES: dict[str, tuple[str, dict[str, tuple[tuple[str, ...], str]]]] = {
    "edges-kinds": (
        "Edges: each kind by itself",
        {"value": (("predicted",), "frozen"), "qk": (("predicted_qk",), "qk")},
    ),
    "edges-direct": (
        "Edges: the whole direct effect, live",
        dict.fromkeys(("value", "qk"), (("predicted", "predicted_qk"), "direct_live")),
    ),
    "edges-total": (
        "Edges: everything responds, live",
        dict.fromkeys(("value", "qk"), (("predicted", "predicted_qk"), "total_live")),
    ),
}
EDGE_KINDS = {"value": "through values", "qk": "through patterns"}
_OF_KIND = {"through values": ("@effect", "circle"), "through patterns": ("@pattern", "diamond")}


def edges(
    tested: Mapping[str, Any], drawn: Mapping[str, tuple[tuple[str, ...], str]], ci_name: str = "95% CI"
) -> alt.TopLevelMixin | None:
    """Predicted changes of targets against measured ones, a colour for each kind of edge, with CIs and the diagonal.

    Args:
        tested: `interventions.results.edges_of`.
        drawn: a value of `EDGE_FIGURES`.
    """
    rows: list[dict[str, Any]] = []
    for r in tested.get("rows") or []:
        predictions, measured = drawn[r["kind"]]
        value, parts = real(r.get(measured)), [real(r.get(name)) for name in predictions]
        if value is None or parts[0] is None:
            continue
        row = {"edge": plain(f"{r['source']} → {r['target']}"), "kind": EDGE_KINDS[r["kind"]], "m": value}
        rows.append(
            row
            | {"p": sum(part or 0.0 for part in parts)}
            | _ends(*interval_or_reason(r, f"{measured}_ci95", measured))
        )
    if not rows:
        return None
    ends = [min(min(r["p"], r["m"]) for r in rows), max(max(r["p"], r["m"]) for r in rows)]
    kinds = [name for name in EDGE_KINDS.values() if any(r["kind"] == name for r in rows)]
    colours, shapes = zip(*(_OF_KIND[name] for name in kinds), strict=True)
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=kinds, range=list(colours)))
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=kinds, range=list(shapes)))
    base = chart(rows).encode(x=alt.X("p:Q", title="predicted by the graph"), color=colour)
    corners = chart([{"p": end, "m": end} for end in ends])
    diagonal = corners.mark_line(color="@control", strokeDash=[5, 4], strokeWidth=1).encode(
        x=alt.X("p:Q"), y=alt.Y("m:Q")
    )
    y = alt.Y("m:Q", title=f"measured by intervention ({_shown(rows, ci_name)})")
    tooltip = [
        alt.Tooltip("edge:N"), alt.Tooltip("kind:N"), alt.Tooltip("p:Q", title="predicted", format=".3g"),
        alt.Tooltip("m:Q", title="measured", format=".3g"), _CI,
    ]  # fmt: skip
    bars = _with_ends(base).mark_rule(opacity=0.4).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"))
    points = base.mark_point(size=40, opacity=0.85).encode(y=y, shape=shape, tooltip=tooltip)
    return sized(zero_rule("x") + zero_rule("y") + diagonal + bars + points, 300)


def _nice_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
