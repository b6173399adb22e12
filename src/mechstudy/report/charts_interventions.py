"""Charts of interventions: effects against controls, dose-response, patching, predicted against measured edges."""

# ruff: noqa: RUF001 - Greek letters are what the axes show

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from mechstudy.report.charts import chart, sized, zero_rule
from mechstudy.report.claims import Claim, Measured
from mechstudy.report.formatting import plain, real

DIRECTIONS = {
    "features": "circuit's features",
    "random": "random (control)",
    "difference_of_means": "difference of means",
}
_MEAN_AND_INTERVAL = (
    alt.Tooltip("v:Q", title="mean", format=".3f"), alt.Tooltip("low:Q", format=".3f"),
    alt.Tooltip("high:Q", format=".3f"), "n:Q",
)  # fmt: skip


def forest(claims: Sequence[Claim]) -> alt.TopLevelMixin | None:
    """Effect and matched control of each test, with 95% CIs around zero."""
    rows = [row for c in claims for row in _forest_rows(c.title, c.n, c.effect, c.control)]
    return _forest(rows, claims[0].metric if claims else "")


def groups_forest(groups: Sequence[Mapping[str, Any]], metric: str) -> alt.TopLevelMixin | None:
    """Effect and control of each group of features."""
    rows: list[dict[str, Any]] = []
    for group in groups:
        effect, control = Measured.of(group), Measured.of(group, "control_effect")
        rows += _forest_rows(str(group.get("name")), group.get("n"), effect, control)
    return _forest(rows, metric)


def _forest_rows(label: str, n: int | None, effect: Measured, control: Measured) -> Iterator[dict[str, Any]]:
    """A row for the circuit and one for its control; at most three lines of a label for the axis."""
    test = "\n".join(textwrap.wrap(plain(label), 30, max_lines=3, placeholder="…"))
    for role, measured in (("circuit", effect), ("matched control", control)):
        if measured.mean is not None:
            low, high = measured.ci95 or (measured.mean, measured.mean)
            yield {"test": test, "role": role, "v": measured.mean, "low": low, "high": high, "n": n}


def _forest(rows: list[dict[str, Any]], metric: str) -> alt.TopLevelMixin | None:
    if not rows:
        return None
    roles = ["circuit", "matched control"]
    color = alt.Color("role:N", title=None, scale=alt.Scale(domain=roles, range=["@effect", "@control"]))
    offset = alt.YOffset("role:N", scale=alt.Scale(domain=roles, paddingOuter=0.55))
    y = alt.Y(
        "test:N",
        title=None,
        sort=None,
        axis=alt.Axis(labelLimit=260, grid=False, labelExpr="split(datum.label, '\\n')", labelLineHeight=13),
    )
    base = chart(rows).encode(y=y, yOffset=offset, color=color)
    tooltip = ["test:N", "role:N", *_MEAN_AND_INTERVAL]
    shape = alt.Shape("role:N", title=None, scale=alt.Scale(domain=roles, range=["circle", "diamond"]))
    x = alt.X("low:Q", title=f"mean change of the {metric} (95% CI)", axis=alt.Axis(tickCount=8))
    bars = base.mark_rule(strokeWidth=2.5).encode(x=x, x2="high:Q", tooltip=tooltip)
    points = base.mark_point(size=70, opacity=1).encode(x="v:Q", shape=shape, tooltip=tooltip)
    n_tests = len({r["test"] for r in rows})
    return sized(zero_rule("x") + bars + points, max(90, (46 if n_tests < 8 else 34) * n_tests))


def dose_response(summary: Mapping[str, Any]) -> alt.TopLevelMixin | None:
    """Change of the metric over the steering coefficient, features against both baselines."""
    rows = []
    for r in summary.get("dose_response") or []:
        effect = real(r.get("effect"))
        if effect is None:
            continue
        low, high = r.get("ci95") or (effect, effect)
        direction = DIRECTIONS.get(str(r.get("direction")), str(r.get("direction")))
        rows.append(
            {"direction": direction, "alpha": r["alpha"], "v": effect, "low": low, "high": high, "n": r.get("n")}
        )
    if not rows:
        return None
    names = list(dict.fromkeys([*DIRECTIONS.values(), *(r["direction"] for r in rows)]))
    colour = alt.Color(
        "direction:N", title=None, scale=alt.Scale(domain=names, range=["@effect", "@control", "@compare"])
    )
    base = chart(rows).encode(x=alt.X("alpha:Q", title="steering coefficient α"), color=colour)
    y = alt.Y("low:Q", title=f"change of the {summary.get('metric', 'logit difference')} (95% CI)")
    band = base.mark_area(opacity=0.18).encode(y=y, y2="high:Q")
    dash = alt.StrokeDash("direction:N", legend=None, scale=alt.Scale(domain=names, range=[[1, 0], [5, 3], [2, 2]]))
    line = base.mark_line(strokeWidth=2).encode(y="v:Q", strokeDash=dash)
    tooltip = ["direction:N", "alpha:Q", *_MEAN_AND_INTERVAL]
    points = base.mark_point(size=36, opacity=1).encode(y="v:Q", tooltip=tooltip)
    return sized(zero_rule("y") + zero_rule("x") + band + line + points, 280)


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
    colour = alt.Color(
        "v:Q",
        title="share of the gap removed",
        scale=alt.Scale(domain=[-reach, 0, reach], range=["@neg", "@mid", "@pos"], interpolate="rgb"),
        legend=alt.Legend(format=".0%", gradientLength=200),
    )
    base = chart(rows).encode(
        x=alt.X("position:N", title="position", sort=None, axis=alt.Axis(labelAngle=-30)),
        y=alt.Y("layer:O", title="layer", sort="descending"),
        tooltip=["layer:O", "position:N", alt.Tooltip("v:Q", title="removed", format=".1%")],
    )
    return sized(base.mark_rect().encode(color=colour), max(160, 20 * len(layers)))


def edges(summary: Mapping[str, Any], measured: str) -> alt.TopLevelMixin | None:
    """Predicted edge against the measured one, `frozen` or `live`, with CIs and the diagonal."""
    rows = []
    for r in (summary.get("edges") or {}).get("rows") or []:
        value, predicted = real(r.get(measured)), real(r.get("predicted"))
        if value is None or predicted is None:
            continue
        low, high = r.get(f"{measured}_ci95") or (value, value)
        rows.append(
            {"edge": plain(f"{r['source']} → {r['target']}"), "p": predicted, "m": value, "low": low, "high": high}
        )
    if not rows:
        return None
    ends = [min(min(r["p"], r["m"]) for r in rows), max(max(r["p"], r["m"]) for r in rows)]
    colour = "@effect" if measured == "frozen" else "@compare"
    base = chart(rows).encode(x=alt.X("p:Q", title="predicted by the graph's edge"))
    ends_rows = [{"p": end, "m": end} for end in ends]
    diagonal = chart(ends_rows).mark_line(color="@control", strokeDash=[5, 4], strokeWidth=1)
    y = alt.Y("m:Q", title="measured by intervention (95% CI)")
    tooltip = [
        "edge:N", alt.Tooltip("p:Q", title="predicted", format=".3g"),
        alt.Tooltip("m:Q", title="measured", format=".3g"),
    ]  # fmt: skip
    drawn = (
        zero_rule("x")
        + zero_rule("y")
        + diagonal.encode(x="p:Q", y="m:Q")
        + base.mark_rule(color=colour, opacity=0.4).encode(y=alt.Y("low:Q"), y2="high:Q")
        + base.mark_point(color=colour, size=40, opacity=0.85).encode(y=y, tooltip=tooltip)
    )
    return sized(drawn, 300)
