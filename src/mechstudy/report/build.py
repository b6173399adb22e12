"""Build the static report of a study from its artifacts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mechstudy.monitoring.record import usage_file

from . import charts, formatting
from .feature_data import feature_labels, write_features
from .figures import Figures, bundle, write_data
from .pages import (
    behaviour_page,
    chart_theme,
    dictionaries_page,
    graph_page,
    interventions_page,
    overview_page,
)
from .site import Page, Site, command
from .source import Source, parse_unit, real
from .usage import FILE as USAGE
from .usage import usage_page, usage_phases

PHASES = (
    ("model", "Model"), ("prompts", "Prompts"), ("baseline", "Baseline"), ("corpus", "Corpus"),
    ("capture", "Capture"), ("stream", "Streamed"), ("train", "Dictionaries"), ("attribute", "Graphs"),
    ("features", "Features"),
    ("intervene", "Interventions"),
)  # fmt: skip
_SHOWN_WITH = {"variant": "train"}
DONE = ("done", "complete", "completed", "cached", "reused", "ok", "published")


def build_report(
    study: Mapping[str, Any], inputs: Mapping[str, Path], units: Sequence[Mapping[str, Any]], out: Path
) -> None:
    """Write the report: static pages that open from `file://` and make no network request.

    Args:
        study: the study's configuration as a plain dict.
        inputs: unit name (`baseline[capitals]`, `train[12]`, ...) -> artifact folder; any may be absent.
        units: what ran: {name, phase, artifact, id, seconds, started, finished, status, peak_rss_bytes,
            files{name: size}, version, spec, inputs, provenance}; missing keys show as n/a.
        out: folder to write index.html, data/, assets/ and figures/ into.

    Raises:
        MechstudyError: an artifact's file is broken.
    """
    source = Source(study, inputs, units)
    out.mkdir(parents=True, exist_ok=True)
    site = Site(source, out, _pages(source))
    site.write_assets(bundle())
    write_data(out, "chart-theme", chart_theme())
    figures = Figures(out)
    features = (source.json("features", "features.json") or {}).get("features") or []
    labels = feature_labels(features)
    rows = write_features(out, features)
    site.render("features.html.j2", "features.html", n=len(rows), absent=source.why_absent("features"))
    views = {}
    for behaviour in source.behaviours:
        behaviour_page(source, site, figures, behaviour)
        views[behaviour] = graph_page(source, site, figures, behaviour, labels)
        interventions_page(source, site, figures, behaviour)
    dictionaries_page(source, site, figures)
    _compute_page(source, site, figures)
    usage_page(source, site, figures, usage_phases(source))
    overview_page(source, site, views, _phases(source))


def _pages(source: Source) -> list[Page]:
    pages = [Page("index.html", "Overview", "")]
    for behaviour in source.behaviours:
        key, group = formatting.slug(behaviour), formatting.title(behaviour)
        pages += [
            Page(f"behaviour-{key}.html", "Prompts & baseline", group),
            Page(f"graph-{key}.html", "Graphs", group, f"attribute[{behaviour}]" in source.inputs),
            Page(f"interventions-{key}.html", "Interventions", group, f"intervene[{behaviour}]" in source.inputs),
        ]
    return [
        *pages,
        Page("dictionaries.html", "Dictionaries", "Model parts", bool(source.layers)),
        Page("features.html", "Features", "Model parts", "features" in source.inputs),
        Page("compute.html", "Compute & provenance", "Record"),
        Page(USAGE, "Usage", "Record", any(usage_file(folder).exists() for folder in source.inputs.values())),
    ]


def _phases(source: Source) -> list[dict[str, Any]]:
    """The pipeline strip: each phase with its units' state and time."""
    result = []
    for phase, label in PHASES:
        units = [u for u in source.units if _SHOWN_WITH.get(of := _phase(u), of) == phase]
        if not units:
            continue
        done = sum(_is_done(u) for u in units)
        failed = any(u.get("status") == "failed" for u in units)
        result.append(
            {
                "phase": phase,
                "label": label,
                "n": len(units),
                "done": done,
                "state": "failed" if failed else "done" if done == len(units) else "part" if done else "none",
                "others": ", ".join(sorted({str(u.get("status")) for u in units if not _is_done(u)})),
                "seconds": sum(real(u.get("seconds")) or 0 for u in units),
                "first": formatting.slug(units[0]["name"]),
            }
        )
    return result


def _phase(unit: Mapping[str, Any]) -> str:
    return str(unit.get("phase") or parse_unit(unit["name"])[0])


def _is_done(unit: Mapping[str, Any]) -> bool:
    return str(unit.get("status", "")).lower() in DONE


def _compute_page(source: Source, site: Site, figures: Figures) -> None:
    units = [
        {
            **{k: u.get(k) for k in ("artifact", "id", "seconds", "status", "peak_rss_bytes", "version", "reason")},
            "name": u["name"],
            "slug": formatting.slug(u["name"]),
            "phase": _phase(u),
            "done": _is_done(u),
            "started": _when(u.get("started")),
            "finished": _when(u.get("finished")),
            "files": sorted((u.get("files") or {}).items(), key=lambda item: -_bytes(item[1])),
            "bytes": sum(_bytes(v) for v in (u.get("files") or {}).values()),
            "inputs": {str(k): _input(v) for k, v in (u.get("inputs") or {}).items()},
            "spec": _yaml(u.get("spec") or {}),
            "command": command(u),
        }
        for u in source.units
    ]
    drawn = [
        figures.add(
            "compute-time", charts.unit_bars(source.units, "seconds", "wall time (s)", 1.0),
            title="Wall time of each unit", caption="As measured when the artifact was made.", units=(),
        ),
        figures.add(
            "compute-memory", charts.unit_bars(source.units, "peak_rss_bytes", "peak resident memory (GB)", 1e-9),
            title="Peak memory of each unit", caption="Largest resident set of the process.", units=(),
        ),
    ]  # fmt: skip
    provenance: dict[str, Any] = next((u["provenance"] for u in reversed(source.units) if u.get("provenance")), {})
    packages = provenance.get("packages") or {}
    environment = {
        k: v if isinstance(v, str) else _yaml(v)
        for k, v in provenance.items()
        if k not in ("packages", "argv") and v not in (None, {}, [], "")
    }
    site.render(
        "compute.html.j2",
        "compute.html",
        units=units,
        figures=[f for f in drawn if f],
        packages=dict(sorted(packages.items())) if isinstance(packages, dict) else {},
        environment=environment,
        study_yaml=_yaml(source.study),
        total_seconds=sum(real(u.get("seconds")) or 0 for u in source.units),
        total_bytes=sum(u["bytes"] for u in units),
        peak=max((real(u.get("peak_rss_bytes")) or 0 for u in source.units), default=0),
    )


def _bytes(value: Any) -> int:
    """A file's size, given as a number or as a manifest's {sha256, size}."""
    return int(real(value.get("size") if isinstance(value, Mapping) else value) or 0)


def _input(value: Any) -> str:
    return str(value.get("id", "")) if isinstance(value, Mapping) else str(value)


def _when(value: Any) -> str:
    if isinstance(value, (int, float)):
        return datetime.fromtimestamp(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return str(value or "")[:19].replace("T", " ")


def _yaml(value: Any) -> str:
    buffer = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 100
    yaml.dump(formatting.jsonable(value), buffer)
    return buffer.getvalue().removesuffix("...\n")
