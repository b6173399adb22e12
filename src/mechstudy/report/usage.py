"""The page of usage: what each phase used of the machine over time, against the range expected of it."""

from __future__ import annotations

from typing import Any

import altair as alt

from mechstudy.core.sizes import human
from mechstudy.monitoring.record import read_usage, usage_file
from mechstudy.monitoring.run_usage import PhaseUsage, by_phase
from mechstudy.monitoring.summary import SHORT, points
from mechstudy.report.charts import chart, sized
from mechstudy.report.data import ReportData
from mechstudy.report.figures import Figures
from mechstudy.report.formatting import slug, title
from mechstudy.report.site import Site

FILE = "usage.html"
_POINTS = 160  # per phase
_BADGES = {"as expected": "supported", "above": "supported", "low": "caveat", "not judged": "plain"}


def has_usage(data: ReportData) -> bool:
    """Whether usage was recorded beside any artifact."""
    return any(unit.folder is not None and usage_file(unit.folder).exists() for unit in data.units)


def usage_page(data: ReportData, site: Site, figures: Figures) -> None:
    """A table of all phases, in the order of their first units, and charts of those that took long enough."""
    sessions = [read_usage(usage_file(unit.folder)) for unit in data.units if unit.folder is not None]
    place = {unit.name: i for i, unit in enumerate(data.units)}
    phases = by_phase(sessions, data.study, data.profiles)
    phases.sort(key=lambda phase: min(place.get(name, len(place)) for name in phase.units))
    drawn = []
    overview = figures.add(
        "usage-phases",
        _overview(phases),
        "How busy each phase kept what it ran on",
        "Bars: share of the GPU's time, or on a CPU of the threads given. Bands: the expected range.",
    )
    for phase in phases:
        if phase.use.seconds < SHORT:
            continue
        expected = ". The band is the expected range." if phase.evidence.expected else "; no range is expected."
        caption = f"Units end to end{expected}"
        drawn.append(figures.add(f"usage-{slug(phase.phase)}", _course(phase), _title(phase), caption))
    rows = [_row(phase) for phase in phases]
    site.render("usage.html.j2", FILE, overview=overview, figures=drawn, rows=rows)


def _title(phase: PhaseUsage) -> str:
    return f"{title(phase.phase)}: {'GPU' if phase.use.on_gpu else 'threads'} busy {phase.use.busy:.0%}"


def _row(phase: PhaseUsage) -> dict[str, Any]:
    use, wanted = phase.use, phase.evidence.expected
    return {
        "phase": title(phase.phase),
        "units": len(phase.units),
        "seconds": use.seconds,
        "of": ("GPU" if use.on_gpu else f"{use.threads:.3g} threads"),
        "busy": f"{use.busy:.0%}",
        "expected": f"{wanted.low:.0%}-{wanted.high:.0%}" if wanted else "",
        "verdict": phase.verdict,
        "badge": _BADGES[phase.verdict],
        "rss": human(use.rss),
        "read": "n/a" if use.read is None else human(use.read),
        "written": "n/a" if use.write is None else human(use.write),
        "gpu_memory": "" if use.gpu_memory is None else human(use.gpu_memory),
        "hosts": ", ".join(use.hosts),
        "bottlenecks": phase.found,
    }


def _overview(phases: list[PhaseUsage]) -> alt.TopLevelMixin | None:
    rows: list[dict[str, Any]] = []
    for p in phases:
        low, high = (p.evidence.expected.low, p.evidence.expected.high) if p.evidence.expected else (None, None)
        busy = round(min(1.0, p.use.busy), 4)
        rows.append({"phase": title(p.phase), "busy": busy, "state": p.verdict, "low": low, "high": high})
    if not rows:
        return None
    y = alt.Y("phase:N", title=None, sort=[row["phase"] for row in rows])
    x = alt.X("busy:Q", title="share of the time in use", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"))
    states = ["as expected", "above", "low", "not judged"]
    colour = alt.Color(
        "state:N",
        title=None,
        scale=alt.Scale(domain=states, range=["@effect", "@pos", "@compare", "@control"]),
        legend=alt.Legend(values=[s for s in states if any(row["state"] == s for row in rows)]),
    )
    tooltip = ["phase:N", alt.Tooltip("busy:Q", format=".0%"), "state:N"]
    base = chart(rows).encode(y=y)
    bars = base.mark_bar(height=12, cornerRadiusEnd=2).encode(x=x, color=colour, tooltip=tooltip)
    bands = (
        chart([row for row in rows if row["low"] is not None])
        .mark_bar(height=20, color="@pos", opacity=0.22)
        .encode(y=y, x=alt.X("low:Q"), x2="high:Q")
    )
    labels = base.mark_text(align="left", dx=4, fontSize=10, color="@muted").encode(
        x=x, text=alt.Text("busy:Q", format=".0%")
    )
    return sized(bands + bars + labels, max(80, 26 * len(rows)))


def _course(phase: PhaseUsage) -> alt.TopLevelMixin | None:
    """How busy, and how much memory, over the phase's units one after another."""
    rows, offset = [], 0.0
    most = max(2, _POINTS // len(phase.units))
    for unit, sessions in phase.units.items():
        course = points(sessions, most)
        before = 0.0
        for p in course:
            rows.append(
                {"unit": unit, "start": round(offset + before, 2), "end": round(offset + p.t, 2),
                 "busy": round(min(1.0, p.busy), 4), "rss": round(p.rss / 1e9, 4)}
            )  # fmt: skip
            before = p.t
        offset += before
    if not rows:
        return None
    x = alt.X("start:Q", title="seconds of work", scale=alt.Scale(domain=[0, round(offset, 2)], nice=False))
    share = alt.Axis(format="%", tickCount=5)
    tooltip = [
        "unit:N",
        alt.Tooltip("start:Q", title="from (s)", format=",.1f"),
        alt.Tooltip("busy:Q", format=".0%"),
        alt.Tooltip("rss:Q", title="memory (GB)", format=".2f"),
    ]
    line = chart(rows).encode(x=x)
    busy = line.mark_rect(color="@effect", opacity=0.75).encode(
        x2="end:Q",
        y=alt.Y("busy:Q", title="in use", scale=alt.Scale(domain=[0, 1]), axis=share),
        y2=alt.Y2Datum(0),
        tooltip=tooltip,
    )
    layers: list[alt.Chart] = [busy]
    if (wanted := phase.evidence.expected) is not None:
        band = chart([{"low": wanted.low, "high": wanted.high}]).mark_rect(color="@pos", opacity=0.16)
        layers.insert(0, band.encode(y=alt.Y("low:Q", scale=alt.Scale(domain=[0, 1])), y2="high:Q"))
    return sized(alt.layer(*layers), 140)
