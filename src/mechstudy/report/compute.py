"""The page of computation and provenance: every unit with its time, memory, files, spec and command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechstudy.report import charts
from mechstudy.report.data import ReportData
from mechstudy.report.figures import Figures
from mechstudy.report.formatting import yaml_text
from mechstudy.report.site import Site

FILE = "compute.html"


def compute_page(data: ReportData, site: Site, figures: Figures) -> None:
    """Draws the time and memory of the units and lists them."""
    records = [{**unit.record, "name": unit.name} for unit in data.units]
    drawn = [
        figures.add(
            "compute-time",
            charts.unit_bars(records, "seconds", "wall time (s)", 1.0),
            "Wall time of each unit",
            "As measured when the artifact was made.",
        ),
        figures.add(
            "compute-memory",
            charts.unit_bars(records, "peak_rss_bytes", "peak resident memory (GB)", 1e-9),
            "Peak memory of each unit",
            "Largest resident set of the process.",
        ),
    ]
    provenance: Mapping[str, Any] = next((p for r in reversed(records) if (p := r.get("provenance"))), {})
    site.render(
        "compute.html.j2",
        FILE,
        units=data.units,
        figures=drawn,
        packages=dict(sorted((provenance.get("packages") or {}).items())),
        environment={
            k: v if isinstance(v, str) else yaml_text(v)
            for k, v in provenance.items()
            if k not in ("packages", "argv") and v not in (None, {}, [], "")
        },
        study_yaml=yaml_text(data.study),
        total_seconds=data.seconds,
        total_bytes=sum(sum((r.get("files") or {}).values()) for r in records),
        peak=max((r.get("peak_rss_bytes") or 0 for r in records), default=0),
    )
