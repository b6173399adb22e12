"""The pages of the record: every unit with its provenance, and what each phase used of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from mechstudy.monitoring.bottlenecks import PhaseUsage, by_phase
from mechstudy.monitoring.record import read_usage, usage_file
from mechstudy.monitoring.summary import SHORT, points
from mechstudy.report.charts import chart, sized, unit_bars
from mechstudy.report.formatting import slug, title, yaml_text
from mechstudy.report.site import Site

_POINTS = 160  # per phase


def compute_page(site: Site) -> None:
    """The time and memory of the units, and a list of them with files, spec and command."""
    units = site.data.units
    for name, field, label, scale, heading in (
        ("time", "seconds", "wall time (s)", 1.0, "Wall time of each unit"),
        ("memory", "peak_rss_bytes", "peak resident memory (GB)", 1e-9, "Peak memory of each unit"),
    ):
        site.figures.add(f"compute-{name}", unit_bars(units, field, label, scale), heading)
    provenance: Mapping[str, Any] = next((p for unit in reversed(units) if (p := unit.record.get("provenance"))), {})
    site.render(
        "compute",
        units=units,
        packages=dict(sorted((provenance.get("packages") or {}).items())),
        environment={
            k: v if isinstance(v, str) else yaml_text(v)
            for k, v in provenance.items()
            if k not in ("packages", "argv") and v not in (None, {}, [], "")
        },
        total_bytes=sum(sum((unit.record.get("files") or {}).values()) for unit in units),
        peak=max((unit.record.get("peak_rss_bytes") or 0 for unit in units), default=0),
    )


def usage_page(site: Site) -> None:
    """A table of all phases, in the order of their first units, and charts of those that took long enough."""
    data = site.data
    sessions = [read_usage(usage_file(unit.folder)) for unit in data.units if unit.folder is not None]
    place = {unit.name: i for i, unit in enumerate(data.units)}
    phases = by_phase(sessions, data.study, data.profiles)
    phases.sort(key=lambda phase: min(place.get(name, len(place)) for name in phase.units))
    site.figures.add("usage-phases", _overview(phases), "How busy each phase kept what it ran on")
    long = [phase for phase in phases if phase.use.seconds >= SHORT]
    for phase in long:
        busy = f"{'GPU' if phase.use.on_gpu else 'threads'} busy {phase.use.busy:.0%}"
        site.figures.add(f"usage-{slug(phase.phase)}", _course(phase), f"{title(phase.phase)}: {busy}")
    site.render("usage", phases=phases, long=long)


def _overview(phases: list[PhaseUsage]) -> alt.TopLevelMixin | None:
    rows: list[dict[str, Any]] = [
        {"phase": title(p.phase), "busy": round(min(1.0, p.use.busy), 4), "state": p.verdict}
        | {end: getattr(p.expected, end, None) for end in ("low", "high")}
        for p in phases
    ]
    if not rows:
        return None
    y = alt.Y("phase:N", title=None, sort=[row["phase"] for row in rows])
    x = alt.X("busy:Q", title="share of the time in use", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"))
    states = ["as expected", "above", "low", "not judged"]
    scale = alt.Scale(domain=states, range=["@effect", "@pos", "@compare", "@control"])
    legend = alt.Legend(values=[s for s in states if any(row["state"] == s for row in rows)])
    colour = alt.Color("state:N", title=None, scale=scale, legend=legend)
    tooltip = [alt.Tooltip("phase:N"), alt.Tooltip("busy:Q", format=".0%"), alt.Tooltip("state:N")]
    base = chart(rows).encode(y=y)
    bars = base.mark_bar(height=12, cornerRadiusEnd=2).encode(x=x, color=colour, tooltip=tooltip)
    ranges = chart([row for row in rows if row["low"] is not None]).mark_bar(height=20, color="@pos", opacity=0.22)
    bands = ranges.encode(y=y, x=alt.X("low:Q"), x2=alt.X2("high:Q"))
    labels = base.mark_text(align="left", dx=4, fontSize=10, color="@muted")
    return sized(bands + bars + labels.encode(x=x, text=alt.Text("busy:Q", format=".0%")), max(80, 26 * len(rows)))


def _course(phase: PhaseUsage) -> alt.TopLevelMixin | None:
    """How busy, and how much memory, over the phase's units one after another."""
    rows, offset = [], 0.0
    most = max(2, _POINTS // len(phase.units))
    for unit, sessions in phase.units.items():
        before = 0.0
        for p in points(sessions, most):
            row = {"unit": unit, "start": round(offset + before, 2), "end": round(offset + p.t, 2)}
            rows.append(row | {"busy": round(min(1.0, p.busy), 4), "rss": round(p.rss / 1e9, 4)})
            before = p.t
        offset += before
    if not rows:
        return None
    x = alt.X("start:Q", title="seconds of work", scale=alt.Scale(domain=[0, round(offset, 2)], nice=False))
    whole = alt.Scale(domain=[0, 1])
    y = alt.Y("busy:Q", title="in use", scale=whole, axis=alt.Axis(format="%", tickCount=5))
    tooltip = [
        alt.Tooltip("unit:N"), alt.Tooltip("start:Q", title="from (s)", format=",.1f"),
        alt.Tooltip("busy:Q", format=".0%"), alt.Tooltip("rss:Q", title="memory (GB)", format=".2f"),
    ]  # fmt: skip
    bars = chart(rows).mark_rect(color="@effect", opacity=0.75)
    layers = [bars.encode(x=x, x2=alt.X2("end:Q"), y=y, y2=alt.Y2Datum(0), tooltip=tooltip)]
    if (wanted := phase.expected) is not None:
        band = chart([{"low": wanted.low, "high": wanted.high}]).mark_rect(color="@pos", opacity=0.16)
        layers.insert(0, band.encode(y=alt.Y("low:Q", scale=whole), y2=alt.Y2("high:Q")))
    return sized(alt.layer(*layers), 140)
