"""Whether what a submitted unit is made from is still what it was then: mechstudy itself, and the user's own files."""

from __future__ import annotations

from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.study.unit import Unit


def check_unchanged(unit: Unit, base: Path) -> None:
    """Refuses to store a unit under an id that does not say what it would be made from.

    Args:
        base: the study file's folder.

    Raises:
        MechstudyError: another version of mechstudy, or another prompts file, corpus or model than were submitted.
    """
    from mechstudy.study.units import VERSIONS

    ours = unit.entry.startswith("mechstudy.study.phases.")
    if ours and VERSIONS.get(unit.phase, unit.version) != unit.version:
        raise MechstudyError(
            f"mechstudy was changed since this was submitted: {unit.phase} is now version {VERSIONS[unit.phase]}, it "
            f"was {unit.version}",
            where=unit.name,
            fix="`mechstudy cancel`, then `mechstudy resume`: what did not change is kept",
        )
    if (changed := _changed(unit, base)) is not None:
        raise MechstudyError(
            f"{changed} was changed since the study was submitted",
            where=unit.name,
            fix="`mechstudy cancel`, then `mechstudy resume` with what is there now",
        )


def _changed(unit: Unit, base: Path) -> str | None:
    """What of the user's a unit reads that is no longer what its id says; None where nothing is."""
    from mechstudy.activations.config import CorpusConfig
    from mechstudy.models.local_files import local_folder
    from mechstudy.study.fingerprints import corpus_fingerprint, file_fingerprint, model_fingerprint

    spec, before = unit.spec, unit.spec.get("fingerprint")
    if spec.get("file") and spec.get("sha256"):
        return None if file_fingerprint(base / spec["file"]) == spec["sha256"] else str(base / spec["file"])
    if unit.entry == "mechstudy.study.phases.corpus:run":
        config = CorpusConfig.model_validate({k: v for k, v in spec.items() if k != "fingerprint"})
        return None if corpus_fingerprint(config, base) == before else f"corpus.source ({config.source})"
    if unit.entry == "mechstudy.study.phases.model:run":
        folder = local_folder(spec["source"], base)
        same = folder is not None and model_fingerprint(folder) == before
        return None if same else f"the model ({spec['source']})"
    return None
