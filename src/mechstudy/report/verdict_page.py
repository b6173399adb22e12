"""The page of a behaviour's verdict: what is asked of the circuit, what was measured, and what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from mechstudy.report.charts import chart, sized
from mechstudy.report.formatting import plain, slug, title
from mechstudy.report.site import Site

OUTCOME_BADGES = {"holds": "supported", "partly": "caveat", "not shown": "unsupported", "refuted": "unspecific"}
STATE_BADGES = {"met": "supported", "not met": "unspecific", "open": "unsupported", "not measured": "unsupported"}
_SHOWN = 30  # members in the table


def verdict_page(site: Site, behaviour: str) -> None:
    """The criteria against their thresholds, f by size, the specification curve, rivals, parts, the members."""
    key, unit = slug(behaviour), site.data.verdicts[behaviour]
    record = unit.json("verdict.json")
    if record:
        ci_name = site.data.interval_name
        for name, drawn, heading in (
            ("criteria", criteria_chart(record["criteria"], ci_name), "Every criterion against its threshold"),
            (
                "curve",
                curve_chart(record["curve"], record["size"], ci_name),
                "How much the strongest nodes carry alone",
            ),
            ("specifications", specification_chart(record), "Every combination of choices"),
            ("rivals", rivals_chart(record["rivals"]), "The circuit and its rivals"),
        ):
            site.figures.add(f"verdict-{name}-{key}", drawn, heading, unit)
    site.render(
        "verdict",
        key,
        behaviour=behaviour,
        record=record,
        members=record.get("members", [])[:_SHOWN],
        badges=STATE_BADGES,
        outcome_badge=OUTCOME_BADGES.get(record.get("outcome", "")),
        absent=None if record else site.data.why_no_circuit(unit, behaviour),
        unit=unit.name,
    )


def verdict_of(site: Site, behaviour: str) -> dict[str, Any] | None:
    """The verdict of a behaviour for the overview: outcome, why, badge, size; None where there is none."""
    record = site.data.verdicts[behaviour].json("verdict.json")
    if not record:
        return None
    fields = ("outcome", "why", "size", "n_nodes", "criteria")
    return {name: record[name] for name in fields} | {"badge": OUTCOME_BADGES[record["outcome"]]}


def criteria_chart(criteria: Sequence[Mapping[str, Any]], ci_name: str) -> alt.TopLevelMixin | None:
    """Each criterion's number with its interval, and a tick at what is asked."""
    rows = []
    for c in criteria:
        if c["value"] is None or c["name"] == "behaviour":  # whose unit is nats
            continue
        low, high = c["ci"] or (c["value"], c["value"])
        rows.append(
            {"name": c["name"], "value": c["value"], "low": low, "high": high, "asked": c["threshold"],
             "state": c["state"], "at": "at most" if c["at_most"] else "at least"}
        )  # fmt: skip
    if not rows:
        return None
    y = alt.Y("name:N", title=None, sort=None)
    states = alt.Color(
        "state:N",
        title=None,
        scale=alt.Scale(domain=["met", "open", "not met"], range=["@effect", "@control", "@neg"]),
    )
    base = chart(rows).encode(y=y)
    tooltip = [
        alt.Tooltip("name:N"),
        *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high")),
        alt.Tooltip("at:N"),
        alt.Tooltip("asked:Q"),
        alt.Tooltip("state:N"),
    ]
    bars = base.mark_rule(strokeWidth=2.5).encode(x=alt.X("low:Q"), x2=alt.X2("high:Q"), color=states)
    points = base.mark_point(size=90).encode(
        x=alt.X("value:Q", title=f"share of the behaviour, with its {ci_name}; ticks: what is asked"),
        color=states,
        tooltip=tooltip,
    )
    ticks = base.mark_tick(color="@ink", thickness=2, size=18).encode(x=alt.X("asked:Q"))
    return sized(bars + points + ticks, 34 * len(rows) + 40)


def curve_chart(curve: Sequence[Mapping[str, Any]], size: int, ci_name: str) -> alt.TopLevelMixin | None:
    """F over the share of nodes that are kept, with the circuit's size."""
    rows = [dict(row) for row in curve if row["f"] is not None and row["k"] > 0]
    if not rows:
        return None
    x = alt.X(
        "fraction:Q", title="share of nodes that are kept", scale=alt.Scale(type="log"), axis=alt.Axis(format="%")
    )
    base = chart(rows).encode(x=x)
    band = base.mark_area(color="@effect", opacity=0.18).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"))
    line = base.mark_line(color="@effect", point=alt.OverlayMarkDef(color="@effect")).encode(
        y=alt.Y("f:Q", title=f"share of the behaviour ({ci_name})"),
        tooltip=[alt.Tooltip("k:Q"), alt.Tooltip("fraction:Q", format=".1%"), alt.Tooltip("f:Q", format=".3f")],
    )
    one = chart([{"one": 1}]).mark_rule(color="@zero", strokeDash=[5, 4]).encode(y=alt.YDatum(1))
    last = max(rows, key=lambda row: row["k"])
    place = size * last["fraction"] / last["k"]  # the circuit's size need not be one of the curve's
    at = chart([{"fraction": place, "k": size}]).mark_rule(color="@compare").encode(x=x, tooltip=[alt.Tooltip("k:Q")])
    return sized(one + band + line + at, 240)


def specification_chart(record: Mapping[str, Any]) -> alt.TopLevelMixin | None:
    """F of all specifications in order, by what other nodes are replaced by."""
    specifications = sorted((s for s in record["specifications"] if s["f"] is not None), key=lambda s: s["f"])
    rows = [
        {"order": i, "f": s["f"], "replaced by": s["replaced_by"], "ranking": s["ranking"], "size": s["size"],
         "template": plain(str(s["template"]))}
        for i, s in enumerate(specifications)
    ]  # fmt: skip
    if not rows:
        return None
    asked = next(c["threshold"] for c in record["criteria"] if c["name"] == "sufficiency")
    kinds = list(dict.fromkeys(s["replaced_by"] for s in record["specifications"]))
    colours = alt.Scale(domain=kinds, range=["@effect", "@compare", "@pattern"][: len(kinds)])
    points = chart(rows).mark_point(size=32).encode(
        x=alt.X("order:Q", title="specifications, by result", axis=alt.Axis(labels=False, ticks=False)),
        y=alt.Y("f:Q", title="share of the behaviour", scale=alt.Scale(clamp=True, domain=_around(rows))),
        color=alt.Color("replaced by:N", scale=colours),
        tooltip=[
            *(alt.Tooltip(name) for name in ("replaced by:N", "ranking:N", "size:Q", "template:N")),
            alt.Tooltip("f:Q", format=".3f"),
        ],
    )  # fmt: skip
    rule = chart([{"asked": asked}]).mark_rule(color="@neg", strokeDash=[5, 4]).encode(y=alt.YDatum(asked))
    return sized(points + rule, 220)


def _around(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    values = [row["f"] for row in rows]
    return max(-1.0, min(-0.1, *values)), min(2.5, max(1.1, *values))


def rivals_chart(rivals: Sequence[Mapping[str, Any]]) -> alt.TopLevelMixin | None:
    """What the circuit and its rivals carry alone, and what is lost without them."""
    rows = [
        {"circuit": title(str(r["circuit"])), "what": what, "share": r[field]}
        for r in rivals
        for field, what in (("f", "carried when only it is kept"), ("lost", "lost when it is replaced"))
        if r[field] is not None
    ]
    if not rows:
        return None
    kinds = alt.Scale(
        domain=["carried when only it is kept", "lost when it is replaced"], range=["@effect", "@compare"]
    )
    points = chart(rows).mark_point(size=80).encode(
        x=alt.X("share:Q", title="share of the behaviour"),
        y=alt.Y("circuit:N", title=None, sort=None),
        color=alt.Color("what:N", title=None, scale=kinds),
        tooltip=[alt.Tooltip("circuit:N"), alt.Tooltip("what:N"), alt.Tooltip("share:Q", format=".3f")],
    )  # fmt: skip
    zero = chart([{"zero": 0}]).mark_rule(color="@zero", strokeWidth=1).encode(x=alt.XDatum(0))
    return sized(zero + points, 26 * len(rivals) + 40)
