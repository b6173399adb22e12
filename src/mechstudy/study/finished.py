"""Finished artifacts of a run, read from disk, by unit and by field of the report. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mechstudy import dictionaries
from mechstudy.core.errors import MechstudyError
from mechstudy.store.artifacts import Artifact, ArtifactStore
from mechstudy.study.phases import registry
from mechstudy.study.run_folder import ARTIFACTS, SOURCE

if TYPE_CHECKING:
    from mechstudy.dictionaries.formats.recognise import Source


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / ARTIFACTS).is_dir()


def check_run(folder: Path) -> None:
    """Raise a MechstudyError where the folder is not a run's; it says which runs are nearby."""
    if is_run(folder):
        return
    nearby = folder if folder.is_dir() else folder.parent
    runs = sorted(child.name for child in nearby.glob("*") if is_run(child)) if nearby.is_dir() else []
    raise MechstudyError(
        "no such folder" if not folder.exists() else f"this is not a run's folder: it has no {ARTIFACTS}/",
        where=str(folder),
        facts={"runs": ", ".join(str(nearby / name) for name in runs)} if runs else None,
        fix="the folder that `mechstudy run` wrote, for example runs/demo",
    )


def latest(run: Path) -> dict[str, Artifact]:
    """The newest artifact of each unit, by the unit's name."""
    newest: dict[str, Artifact] = {}
    for artifact in ArtifactStore(run / ARTIFACTS).all():
        held = newest.get(artifact.unit)
        if held is None or str(artifact.manifest["finished"]) > str(held.manifest["finished"]):
            newest[artifact.unit] = artifact
    return newest


def of(artifacts: Mapping[str, Artifact], field: str) -> dict[str, Artifact]:
    """The artifacts for a field of `report.ReportData`, by behaviour or layer."""
    phases = [phase.name for phase in registry.phases() if phase.report_field == field]
    return {
        name.removeprefix(f"{artifact.phase}[").removesuffix("]"): artifact
        for name, artifact in artifacts.items()
        if artifact.phase in phases
    }


def dictionary_places(artifacts: Mapping[str, Artifact]) -> dict[int, Path | Source]:
    """Where each layer's dictionary is, trained or published.

    Raises:
        MechstudyError: a published dictionary's files are gone, or not those that were judged.
    """

    def place(one: Artifact) -> Path | Source:
        if SOURCE in one.manifest["files"]:
            return dictionaries.pinned(one.read_json(SOURCE))
        return one.file("dictionary/cfg.json").parent

    return {int(layer): place(one) for layer, one in of(artifacts, "dictionaries").items()}


def dictionary_checksums(artifacts: Mapping[str, Artifact], made: Artifact) -> dict[int, str]:
    """Checksums of the dictionaries that an artifact was made with, by layer, where the run still has them."""
    inputs = made.manifest["inputs"]
    used = {
        int(layer): one
        for layer, one in of(artifacts, "dictionaries").items()
        if inputs.get(one.unit, {}).get("id") == one.id
    }
    return {layer: _checksum(one) for layer, one in used.items()}


def _checksum(dictionary: Artifact) -> str:
    files = dictionary.manifest["files"]
    own = [SOURCE] if SOURCE in files else sorted(name for name in files if name.endswith(".safetensors"))
    return ",".join(str(files[name]["sha256"]) for name in own)
