"""Phase 7: the static report, from artifacts alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mechstudy import features, report
from mechstudy.core.work import Estimate, Work
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.store.artifacts import Artifact
from mechstudy.study.phases import registry
from mechstudy.study.phases.base import Phase, Spec
from mechstudy.study.run_folder import RunFolder
from mechstudy.study.study import Study
from mechstudy.study.unit import Input, Key, Unit
from mechstudy.study.units import StudyPlan


class ReportSpec(Spec):
    """The study, without the sections that change no result."""

    study: Study

    def canonical(self) -> dict[str, Any]:
        """The study as plain JSON, without ``compute`` and ``storage``."""
        study = self.study.canonical()
        return {"study": {name: value for name, value in study.items() if name not in ("compute", "storage")}}


@dataclass(frozen=True)
class ReportUnit:
    """A unit as the report sees it: its phase, its key among the phase's units, and its artifact if it has one.

    ``state`` is ``{status, reason}`` of a unit without an artifact, and more facts for its record.
    """

    name: str
    phase: Phase[Any, Any]
    key: Key | None
    artifact: Artifact | None
    state: Mapping[str, Any]


@dataclass(frozen=True)
class ReportInputs:
    """Every unit, in order."""

    units: tuple[ReportUnit, ...]


class ReportPhase(Phase[ReportSpec, ReportInputs]):
    """Builds the pages."""

    kind = name = "report"
    title = "Report"
    version = 11  # pairs of heads, heads of edges
    spec, inputs = ReportSpec, ReportInputs
    optional_inputs = True
    reads_payload = False
    uses_device = False
    concludes = True

    def units(self, plan: StudyPlan) -> Iterator[Unit]:
        """One unit, which reads every other."""
        inputs = [Input(unit.phase.kind, unit.name, unit.key) for unit in plan.units]
        yield plan.unit(self, self.kind, ReportSpec(study=plan.study), inputs, estimate=self.estimate(plan))

    def collect(self, unit: Unit, artifacts: Mapping[str, Artifact]) -> ReportInputs:
        """Every unit of the study, with its artifact if there is one."""
        return ReportInputs(
            tuple(
                ReportUnit(item.unit, registry.phase(item.role), item.key, artifacts.get(item.unit), {})
                for item in unit.inputs
            )
        )

    def estimate(self, plan: StudyPlan) -> Estimate:
        """Figures and pages, most of them of graphs."""
        n, a = len(plan.study.behaviours), plan.study.attribution
        size = (6 << 20) + n * a.n_prompts * (a.max_features * 300)
        work = (Work("write", size), Work("pages", 2 + 6 * n))
        return Estimate(size, 256 << 20, note="figures and pages", work=work)

    def run(self, spec: ReportSpec, inputs: ReportInputs, out: ArtifactWriter, runtime: Runtime) -> None:
        """Writes the pages; ``index.html`` is the first."""
        absent = {state["name"]: state for state in runtime.absent}
        units = [replace(unit, state=absent.get(unit.name, {})) for unit in inputs.units]
        report.build_report(report_data(spec.canonical()["study"], units, runtime.run_folder), out.path)


def report_data(
    study: Mapping[str, Any], units: Sequence[ReportUnit], run_folder: Path | None = None
) -> report.ReportData:
    """The data of a report: every unit's files, in the field that its phase fills.

    Args:
        study: the configuration, as plain JSON.
        units: with an artifact, or failed, waiting or stopped.
        run_folder: where readers keep edits of graphs and labels.
    """
    by_field: dict[str, dict[Any, Any]] = {}
    files = []
    for unit in units:
        folder = None if unit.artifact is None else unit.artifact.path
        record = {"name": unit.name, "phase": unit.phase.name, "title": unit.phase.title, **unit_record(unit)}
        files.append(report.UnitFiles(unit.name, folder, record))
        if unit.phase.report_field is not None:
            by_field.setdefault(unit.phase.report_field, {})[unit.key] = files[-1]
    return report.ReportData(
        study=study, units=files, profiles=registry.usage_profiles(), **_kept(run_folder), **_fields(study, by_field)
    )


def _kept(run_folder: Path | None) -> dict[str, Any]:
    """What readers keep in a run's folder."""
    if run_folder is None:
        return {}
    return {"edits": RunFolder(run_folder).read_edits(), "asked": features.read_asked(run_folder / features.ASKED)}


def _fields(study: Mapping[str, Any], by_field: Mapping[str, Mapping[Any, Any]]) -> dict[str, Any]:
    """The fields of the report's data; a unit that the study lacks has only its name."""
    behaviours = dict.fromkeys(behaviour["name"] for behaviour in study.get("behaviours") or ())
    fields: dict[str, Any] = {}
    for phase in registry.phases():
        if (name := phase.report_field) is None:
            continue
        units = by_field.get(name, {})
        if phase.per == "behaviour":
            names = [*behaviours, *(key for key in units if key not in behaviours)]
            units = {key: units.get(key) or report.UnitFiles(f"{phase.name}[{key}]") for key in names}
        elif phase.per == "layer":
            units = dict(sorted(units.items()))
        fields[name] = units.get(None) or report.UnitFiles(phase.name) if phase.per == "study" else units
    return fields


def unit_record(unit: ReportUnit) -> dict[str, Any]:
    """The record of a unit in the report and the summary."""
    if unit.artifact is None:
        return dict(unit.state)
    artifact, m = unit.artifact, unit.artifact.manifest
    return {
        "artifact": artifact.name,
        "id": artifact.id,
        **{fact: m[fact] for fact in ("seconds", "started", "finished")},
        "status": "done",
        "peak_rss_bytes": m["peak_rss_bytes"],
        "files": {file: entry["size"] for file, entry in m["files"].items()},
        **{fact: m[fact] for fact in ("version", "spec", "inputs", "provenance")},
        "discarded": m.get("discarded", []),
        **unit.state,
    }
