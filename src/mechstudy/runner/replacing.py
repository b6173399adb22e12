"""Artifacts that are set aside while their unit runs again, and restored if it fails."""

from __future__ import annotations

import shutil
from pathlib import Path

from mechstudy.core.files import disk_errors
from mechstudy.store.artifacts import Artifact

_SET_ASIDE = ".replaced"


class ReplacedArtifacts:
    """The artifacts of one run that are set aside, by unit name."""

    def __init__(self) -> None:
        self._paths: dict[str, Path] = {}

    def put(self, name: str, artifact: Artifact) -> None:
        """Moves a unit's artifact away."""
        with disk_errors(artifact.path):
            shutil.rmtree(_away(artifact.path), ignore_errors=True)
            artifact.path.rename(_away(artifact.path))
        self._paths[name] = artifact.path

    def drop(self, name: str) -> None:
        """Deletes the old artifact of a unit that has a new one."""
        if (path := self._paths.pop(name, None)) is not None:
            shutil.rmtree(_away(path), ignore_errors=True)

    def restore(self) -> None:
        """Puts back those whose unit has no new artifact."""
        for path in self._paths.values():
            if _away(path).exists() and not path.exists():
                _away(path).rename(path)
        self._paths.clear()


def _away(path: Path) -> Path:
    return path.with_name(path.name + _SET_ASIDE)
