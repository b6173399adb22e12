"""Whether an artifact can be rebuilt to the same bytes on this machine, judged by its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from mechstudy.machine.hardware import cpu
from mechstudy.planning.opened_study import OpenedStudy
from mechstudy.store.artifacts import Artifact
from mechstudy.store.provenance import current_provenance
from mechstudy.study.phases import registry
from mechstudy.study.phases.base import Phase
from mechstudy.study.phases.model import ModelPhase


class Rebuilding:
    """Which artifacts of a store can be rebuilt.

    Args:
        opened: the study in its present version, with its model and files.
        artifacts: all complete artifacts, also of other versions of the study.
        elsewhere: accept artifacts of another machine or other packages, whose bytes may differ when rebuilt.
    """

    def __init__(self, opened: OpenedStudy, artifacts: list[Artifact], *, elsewhere: bool = False) -> None:
        self._base = opened.file.parent.resolve()
        self._opened = opened
        self._phases = {unit.name: unit.phase for unit in opened.units}
        self._by_id = {artifact.id: artifact for artifact in artifacts}
        self._elsewhere = elsewhere
        self._obstacles: dict[str, str | None] = {}

    def obstacle(self, artifact: Artifact) -> str | None:
        """One line on why an artifact cannot be rebuilt; None if it can."""
        if artifact.id not in self._obstacles:
            self._obstacles[artifact.id] = "it needs itself"  # never read: ids have no cycles
            self._obstacles[artifact.id] = self._own(artifact) or self._inputs(artifact)
        return self._obstacles[artifact.id]

    def _phase(self, artifact: Artifact) -> Phase[Any, Any] | None:
        """The phase of the study's unit, else the one that writes such artifacts."""
        return self._phases.get(artifact.unit) or registry.phase_of(artifact.phase, artifact.manifest["spec"])

    def _own(self, artifact: Artifact) -> str | None:
        manifest, phase = artifact.manifest, self._phase(artifact)
        if phase is None or phase.version != manifest["version"]:
            return f"it was made by another version of the code ({artifact.phase} {manifest['version']})"
        if not self._elsewhere and (differs := made_elsewhere(manifest)) is not None:
            return f"it was made {differs} (--made-elsewhere deletes it all the same)"
        try:
            spec = phase.spec.model_validate(manifest["spec"])
        except ValidationError:
            return f"its spec is of another version of the code ({artifact.phase})"
        return self._model(manifest["spec"]) if phase.name == ModelPhase.name else phase.obstacle(spec, self._base)

    def _inputs(self, artifact: Artifact) -> str | None:
        for label, entry in artifact.manifest["inputs"].items():
            source = self._by_id.get(entry["id"])
            if source is None:
                return f"its input {label} is missing"
            phase = self._phase(source)
            deletable = phase is not None and bool(phase.payload)
            if (source.is_discarded or deletable) and (why := self.obstacle(source)) is not None:
                return f"its input {label} cannot be rebuilt: {why}"
        return None

    def _model(self, spec: Mapping[str, Any]) -> str | None:
        if self._opened.model is None:
            return "the model is not on this machine"
        mine = next((unit.canonical_spec for unit in self._opened.made_by(ModelPhase)), {})
        same = all(spec.get(key) == mine.get(key) for key in ("source", "fingerprint", "sha256"))
        return None if same else "the study has another model now"


def made_elsewhere(manifest: Mapping[str, Any]) -> str | None:
    """``on another machine (...)`` or ``with another torch (...)``; None if it was made as it would be here."""
    made = manifest.get("provenance") or {}
    model = (made.get("cpu") or {}).get("model")
    if model != cpu()["model"]:
        return f"on another machine ({model})"
    if str((manifest.get("runtime") or {}).get("device", "cpu")).startswith("cuda"):
        mine = current_provenance().get("nvidia_smi")
        if made.get("nvidia_smi") != mine:
            return "on another GPU"
    then, now = ((p.get("packages") or {}).get("torch") for p in (made, current_provenance()))
    return None if then == now else f"with another torch ({then})"
