"""Build the static report of a study from its artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechstudy.report import compute, usage
from mechstudy.report.data import ReportData, UnitFiles
from mechstudy.report.feature_data import feature_labels, write_features
from mechstudy.report.figures import Figures, bundle, write_data
from mechstudy.report.formatting import slug, title
from mechstudy.report.pages import (
    behaviour_page,
    dictionaries_page,
    graph_page,
    interventions_page,
    overview_page,
)
from mechstudy.report.site import Page, Site
from mechstudy.report.style import chart_themes


def build_report(data: ReportData, out: Path) -> None:
    """Write the report: static pages that open from `file://` and make no network request.

    Args:
        data: the study's units; any artifact may be absent.
        out: folder to write index.html, data/, assets/ and figures/ into.

    Raises:
        MechstudyError: an artifact's file is broken.
    """
    out.mkdir(parents=True, exist_ok=True)
    site = Site(data, out, site_pages(data))
    site.write_assets(bundle())
    write_data(out, "chart-theme", chart_themes())
    figures = Figures(out)
    features = data.features.json("features.json").get("features") or []
    labels = feature_labels(features)
    write_features(out, features)
    absent = data.why_no_circuit(data.features)
    site.render("features.html.j2", "features.html", n=len(features), absent=absent, unit=data.features.name)
    views = {}
    for behaviour in data.behaviours:
        behaviour_page(data, site, figures, behaviour)
        views[behaviour] = graph_page(data, site, figures, behaviour, labels)
        interventions_page(data, site, figures, behaviour)
    dictionaries_page(data, site, figures)
    compute.compute_page(data, site, figures)
    usage.usage_page(data, site, figures)
    overview_page(data, site, views, pipeline(data.units))


def site_pages(data: ReportData) -> list[Page]:
    """The pages of the navigation; those whose artifact is absent are marked."""
    pages = [Page("index.html", "Overview", "")]
    for behaviour in data.behaviours:
        key, group = slug(behaviour), title(behaviour)
        interventions = data.interventions[behaviour].folder is not None
        pages += [
            Page(f"behaviour-{key}.html", "Prompts & baseline", group),
            Page(f"graph-{key}.html", "Graphs", group, data.graphs[behaviour].folder is not None),
            Page(f"interventions-{key}.html", "Interventions", group, interventions),
        ]
    return [
        *pages,
        Page("dictionaries.html", "Dictionaries", "Model parts", bool(data.dictionaries)),
        Page("features.html", "Features", "Model parts", data.features.folder is not None),
        Page(compute.FILE, "Compute & provenance", "Record"),
        Page(usage.FILE, "Usage", "Record", usage.has_usage(data)),
    ]


def pipeline(units: Sequence[UnitFiles]) -> list[dict[str, Any]]:
    """The pipeline strip: the units of each title, in the order of the first, with their state and time."""
    by_title: dict[str, list[UnitFiles]] = {}
    for unit in units:
        if label := unit.record.get("title"):
            by_title.setdefault(label, []).append(unit)
    return [_step(label, members) for label, members in by_title.items()]


def _step(label: str, units: Sequence[UnitFiles]) -> dict[str, Any]:
    done = sum(unit.done for unit in units)
    failed = any(unit.record.get("status") == "failed" for unit in units)
    return {
        "label": label,
        "n": len(units),
        "done": done,
        "state": "failed" if failed else "done" if done == len(units) else "part" if done else "none",
        "others": ", ".join(sorted({str(unit.record.get("status")) for unit in units if not unit.done})),
        "seconds": sum(unit.record.get("seconds") or 0 for unit in units),
        "first": slug(units[0].name),
    }
