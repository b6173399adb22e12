"""Whether an artifact can be made again, here and to the same bytes, by its manifest alone: no decision from clocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechstudy.activations.config import FILE_KINDS, CorpusConfig
from mechstudy.core.errors import MechstudyError
from mechstudy.runner.study_run import OpenedStudy
from mechstudy.store.artifacts import Artifact
from mechstudy.store.provenance import cpu, provenance
from mechstudy.study.fingerprints import corpus_fingerprint, file_fingerprint
from mechstudy.study.retention import payload_of, rule_of
from mechstudy.study.units import VERSIONS


class Remaking:
    """Of all artifacts of a store.

    Args:
        opened: the study as it is now: its code, model and files are what there is to make anything with.
        artifacts: every complete one, also of other versions of the study.
        elsewhere: also count on what another machine, or other packages, have made: the bytes may then differ.
    """

    def __init__(self, opened: OpenedStudy, artifacts: list[Artifact], *, elsewhere: bool = False) -> None:
        self._base = opened.file.parent.resolve()
        self._units = opened.units
        self._model_is_here = opened.model is not None
        self._by_id = {artifact.id: artifact for artifact in artifacts}
        self._elsewhere = elsewhere
        self._versions = {**VERSIONS, **{unit.phase: unit.version for unit in opened.units}}
        self._found: dict[str, str | None] = {}

    def obstacle(self, artifact: Artifact) -> str | None:
        """Why an artifact cannot be made again, in a line; None where it can."""
        if artifact.id not in self._found:
            self._found[artifact.id] = "it needs itself"  # never read: ids make no circles
            self._found[artifact.id] = self._own(artifact) or self._inputs(artifact)
        return self._found[artifact.id]

    def _own(self, artifact: Artifact) -> str | None:
        manifest = artifact.manifest
        if self._versions.get(artifact.phase) != manifest["version"]:
            return f"it was made by another version of the code ({artifact.phase} {manifest['version']})"
        if not self._elsewhere and (differs := made_elsewhere(manifest)) is not None:
            return f"it was made {differs} (--made-elsewhere lets it go all the same)"
        spec = manifest["spec"]
        if artifact.phase == "model":
            return self._model(spec)
        if artifact.phase == "prompts" and spec.get("file"):
            return self._file(spec["file"], spec.get("sha256"))
        if artifact.phase == "corpus" and "source" in spec:
            return self._corpus(spec)
        return None

    def _inputs(self, artifact: Artifact) -> str | None:
        for label, entry in artifact.manifest["inputs"].items():
            found = self._by_id.get(entry["id"])
            if found is None:
                return f"its input {label} is not there"
            rule = rule_of(found.phase, found.manifest["spec"])
            may_go = bool(payload_of(found.manifest["files"], rule.payload)) or self._has_patterns(found)
            if (found.is_discarded or may_go) and (why := self.obstacle(found)) is not None:
                return f"its input {label} could not be made again: {why}"
        return None

    def _has_patterns(self, artifact: Artifact) -> bool:
        return any(unit.name == artifact.unit and unit.discard_patterns for unit in self._units)

    def _model(self, spec: Mapping[str, Any]) -> str | None:
        if not self._model_is_here:
            return "the model is not on this machine"
        mine = next((unit.spec for unit in self._units if unit.phase == "model"), {})
        same = all(spec.get(key) == mine.get(key) for key in ("source", "fingerprint"))
        return None if same else "the model it was made from is not the study's any more"

    def _file(self, name: str, sha256: str | None) -> str | None:
        try:
            now = file_fingerprint(self._base / name)
        except MechstudyError:
            return f"the file it was read from is gone: {Path(name).name}"
        return None if now == sha256 else f"the file it was read from has changed: {Path(name).name}"

    def _corpus(self, spec: Mapping[str, Any]) -> str | None:
        try:
            config = CorpusConfig.model_validate({k: v for k, v in spec.items() if k != "fingerprint"})
            source = config.parsed()
            if source.kind == "hf" and source.revision is None:
                return "its text is from a hub, without a revision: it may not be the same any more"
            now = corpus_fingerprint(config, self._base)
        except (MechstudyError, ValueError) as error:
            return f"the text it was read from is gone ({error.what if isinstance(error, MechstudyError) else error})"
        text = source.path.name if source.kind in FILE_KINDS else source.kind
        return None if now == spec.get("fingerprint") else f"the text it was read from has changed: {text}"


def made_elsewhere(manifest: Mapping[str, Any]) -> str | None:
    """``on another machine (...)`` or ``with another torch (...)``; None where it was made as it would be here."""
    made = manifest.get("provenance") or {}
    model = (made.get("cpu") or {}).get("model")
    if model != cpu()["model"]:
        return f"on another machine ({model})"
    if str((manifest.get("runtime") or {}).get("device", "cpu")).startswith("cuda"):
        mine = provenance().get("nvidia_smi")
        if made.get("nvidia_smi") != mine:
            return "on another GPU"
    then, now = ((p.get("packages") or {}).get("torch") for p in (made, provenance()))
    return None if then == now else f"with another torch ({then})"
