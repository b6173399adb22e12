"""The units of a study as the parts of its report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from mechstudy.store.artifacts import Artifact
from mechstudy.study.phases import registry
from mechstudy.study.phases.report import ReportUnit, report_data

STUDY = {"behaviours": [{"name": "b"}]}


def artifact(folder: Path) -> Artifact:
    facts = {"seconds": 1.0, "started": "", "finished": "", "peak_rss_bytes": 0, "files": {}}
    manifest = {**facts, "version": 1, "spec": {}, "inputs": {}, "provenance": {}}
    return SimpleNamespace(path=folder, name="train-9-0", id="0", manifest=manifest)  # type: ignore[return-value]


def units(**artifacts: Artifact) -> list[ReportUnit]:
    keys = {
        "model": ("model", None),
        "prompts[b]": ("prompts", "b"),
        "train[10]": ("train", 10),
        "train[9]": ("train", 9),
        "variant[9:again]": ("variant", (9, "again")),
        "features": ("features", None),
    }
    return [ReportUnit(name, registry.phase(kind), key, artifacts.get(name), {}) for name, (kind, key) in keys.items()]


def test_units_become_the_parts_of_a_report(tmp_path: Path) -> None:
    data = report_data(STUDY, units(**{"train[9]": artifact(tmp_path)}))
    assert [unit.name for unit in data.units] == [unit.name for unit in units()]
    assert list(data.dictionaries) == [9, 10] and data.dictionaries[9].folder == tmp_path
    assert list(data.variants) == [(9, "again")] and data.features.name == "features"
    assert data.prompts["b"].record["title"] == "Prompts" and data.variants[9, "again"].record["phase"] == "variant"
    assert data.dictionaries[9].record["status"] == "done"


def test_a_unit_that_a_study_lacks_keeps_its_name() -> None:
    data = report_data(STUDY, [])
    assert data.interventions["b"].name == "intervene[b]"
    assert data.interventions["b"].why_absent == "The study has no unit intervene[b], or it has not run."
