"""Charts of interventions: effects against controls, dose-response, patching, predicted against measured edges."""

# ruff: noqa: RUF001 - Greek letters are what the axes show

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from .charts import data, zero_rule
from .claims import Claim
from .formatting import plain
from .source import real

DIRECTIONS = {
    "features": "circuit's features",
    "random": "random (control)",
    "difference_of_means": "difference of means",
}


def forest(claims: Sequence[Claim]) -> alt.TopLevelMixin | None:
    """Effect and matched control of each test, with 95% CIs around zero."""
    rows = []
    for claim in claims:
        label = _wrap(claim.title)
        for role, mean, ci in (
            ("circuit", claim.effect, claim.ci95),
            ("matched control", claim.control_effect, claim.control_ci95),
        ):
            if mean is not None:
                low, high = ci or (mean, mean)
                rows.append({"test": label, "role": role, "v": mean, "low": low, "high": high, "n": claim.n})
    metric = claims[0].metric if claims else ""
    return _forest(rows, f"mean change of the {metric} (95% CI)") if rows else None


def groups_forest(groups: Sequence[Mapping[str, Any]], metric: str) -> alt.TopLevelMixin | None:
    """Effect and control of each group of features."""
    rows = []
    for group in groups:
        label = _wrap(str(group.get("name")))
        for role, e, c in (("circuit", "effect", "ci95"), ("matched control", "control_effect", "control_ci95")):
            if group.get(e) is not None:
                low, high = group.get(c) or (group[e], group[e])
                rows.append({"test": label, "role": role, "v": group[e], "low": low, "high": high, "n": group.get("n")})
    return _forest(rows, f"mean change of the {metric} (95% CI)") if rows else None


def _wrap(label: str) -> str:
    """At most three lines of a label for an axis."""
    return "\n".join(textwrap.wrap(plain(label), 30, max_lines=3, placeholder="…"))


def _forest(rows: list[dict[str, Any]], label: str) -> alt.TopLevelMixin:
    roles = ["circuit", "matched control"]
    color = alt.Color("role:N", title=None, scale=alt.Scale(domain=roles, range=["@effect", "@control"]))
    offset = alt.YOffset("role:N", scale=alt.Scale(domain=roles, paddingOuter=0.55))
    y = alt.Y(
        "test:N",
        title=None,
        sort=None,
        axis=alt.Axis(labelLimit=260, grid=False, labelExpr="split(datum.label, '\\n')", labelLineHeight=13),
    )
    base = alt.Chart(data(rows)).encode(y=y, yOffset=offset, color=color)
    tooltip = [
        "test:N", "role:N", alt.Tooltip("v:Q", title="mean", format=".3f"),
        alt.Tooltip("low:Q", format=".3f"), alt.Tooltip("high:Q", format=".3f"), "n:Q",
    ]  # fmt: skip
    shape = alt.Shape("role:N", title=None, scale=alt.Scale(domain=roles, range=["circle", "diamond"]))
    bars = base.mark_rule(strokeWidth=2.5).encode(
        x=alt.X("low:Q", title=label, axis=alt.Axis(tickCount=8)), x2="high:Q", tooltip=tooltip
    )
    points = base.mark_point(size=70, opacity=1).encode(x="v:Q", shape=shape, tooltip=tooltip)
    n_tests = len({r["test"] for r in rows})
    return (zero_rule("x") + bars + points).properties(
        width="container", height=max(90, (46 if n_tests < 8 else 34) * n_tests)
    )


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
    base = alt.Chart(data(rows)).encode(x=alt.X("alpha:Q", title="steering coefficient α"), color=colour)
    y = alt.Y("low:Q", title=f"change of the {summary.get('metric', 'logit difference')} (95% CI)")
    band = base.mark_area(opacity=0.18).encode(y=y, y2="high:Q")
    dash = alt.StrokeDash("direction:N", legend=None, scale=alt.Scale(domain=names, range=[[1, 0], [5, 3], [2, 2]]))
    line = base.mark_line(strokeWidth=2).encode(y="v:Q", strokeDash=dash)
    points = base.mark_point(size=36, opacity=1).encode(
        y="v:Q",
        tooltip=[
            "direction:N", "alpha:Q", alt.Tooltip("v:Q", title="mean", format=".3f"),
            alt.Tooltip("low:Q", format=".3f"), alt.Tooltip("high:Q", format=".3f"), "n:Q",
        ],
    )  # fmt: skip
    return (zero_rule("y") + zero_rule("x") + band + line + points).properties(width="container", height=280)


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
    base = alt.Chart(data(rows)).encode(
        x=alt.X("position:N", title="position", sort=None, axis=alt.Axis(labelAngle=-30)),
        y=alt.Y("layer:O", title="layer", sort="descending"),
        tooltip=["layer:O", "position:N", alt.Tooltip("v:Q", title="removed", format=".1%")],
    )
    cells = base.mark_rect().encode(color=colour)
    return cells.properties(width="container", height=max(160, 20 * len(layers)))


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
    base = alt.Chart(data(rows)).encode(x=alt.X("p:Q", title="predicted by the graph's edge"))
    diagonal = alt.Chart(data([{"p": e, "m": e} for e in ends])).mark_line(
        color="@control", strokeDash=[5, 4], strokeWidth=1
    )
    y = alt.Y("m:Q", title="measured by intervention (95% CI)")
    tooltip = [
        "edge:N", alt.Tooltip("p:Q", title="predicted", format=".3g"),
        alt.Tooltip("m:Q", title="measured", format=".3g"),
    ]  # fmt: skip
    return (
        zero_rule("x")
        + zero_rule("y")
        + diagonal.encode(x="p:Q", y="m:Q")
        + base.mark_rule(color=colour, opacity=0.4).encode(y=alt.Y("low:Q"), y2="high:Q")
        + base.mark_point(color=colour, size=40, opacity=0.85).encode(y=y, tooltip=tooltip)
    ).properties(width="container", height=300)
