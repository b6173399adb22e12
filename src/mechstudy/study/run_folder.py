"""A run's folder: the study file, artifacts, log, progress, summary, and the newest report."""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path, disk_errors
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.store.artifacts import Artifact, ArtifactStore
from mechstudy.store.lock import RunLock

PROGRESS = "progress.json"
SUMMARY = "summary.json"
EDITS = "edits.json"
STUDY = "study.yaml"
REPORT = "report"
ARTIFACTS = "artifacts"
SOURCE = "source.json"  # of an artifact: where its published dictionary is


class RunFolder:
    """``<run>/{study.yaml, artifacts/, report/, summary.json, log.txt, progress.json, lock}``.

    ``edits.json`` is what a reader made of graphs (pins, groups, labels), by the graph's name.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.store = ArtifactStore(self.path / ARTIFACTS)

    def lock(self) -> RunLock:
        """The lock that a run holds; a second run is refused."""
        return RunLock(self.path)

    def keep_study(self, file: Path) -> None:
        """Copies the study file into the folder, unless it is that copy."""
        target = self.path / STUDY
        if file.resolve() != target.resolve():
            with atomic_path(target) as temporary:
                shutil.copyfile(file, temporary)

    def relative(self, path: Path) -> str:
        """A path below the run folder, relative to it."""
        return path.relative_to(self.path).as_posix()

    def point_report_to(self, artifact: Artifact) -> Path:
        """Makes ``report`` a relative link to the newest report, or a copy where links are not possible."""
        link = self.path / REPORT
        target = Path(os.path.relpath(artifact.path, self.path))
        if link.is_symlink() and Path(os.readlink(link)) == target:  # noqa: PTH115  # the text of the link
            return link
        temporary = link.with_name(f".{REPORT}.new")
        with disk_errors(self.path):
            _remove(temporary)
            try:
                temporary.symlink_to(target, target_is_directory=True)
            except OSError:
                shutil.copytree(artifact.path, temporary)
            if not (link.is_symlink() and temporary.is_symlink()):  # only a link replaces a link atomically
                _remove(link)
            temporary.replace(link)
        return link

    def read_progress(self) -> dict[str, Any]:
        """The content of ``progress.json``; empty if there is none."""
        return self._read(PROGRESS)

    def read_summary(self) -> dict[str, Any]:
        """The content of ``summary.json``; empty if there is none."""
        return self._read(SUMMARY)

    def read_edits(self) -> dict[str, Any]:
        """The content of ``edits.json``; empty if there is none."""
        return self._read(EDITS)

    def keep_edits(self, edits: Mapping[str, Any]) -> None:
        """Adds edits of graphs to ``edits.json``, in place of earlier ones of the same graphs."""
        write_json_atomic(self.path / EDITS, self.read_edits() | dict(edits))

    def _read(self, name: str) -> dict[str, Any]:
        with suppress(MechstudyError):
            content = read_json(self.path / name)
            if isinstance(content, dict):
                return content
        return {}


class ProgressFile:
    """``progress.json``: the status of every unit of a run; ``before`` holds that of the last run."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.before: Mapping[str, dict[str, Any]] = folder.read_progress().get("units", {})
        self._content: dict[str, Any] = {
            "pid": os.getpid(),
            "host": platform.node(),
            "started": _now(),
            "updated": _now(),
            "state": "running",
            "units": {},
        }

    def set(self, name: str, status: str, **facts: Any) -> None:
        """Sets a unit's status in memory; `write` saves it."""
        self._content["units"][name] = {"status": status, **{k: v for k, v in facts.items() if v is not None}}

    def unit(self, name: str) -> Mapping[str, Any]:
        """A unit's status and facts; empty if it has none."""
        facts: Mapping[str, Any] = self._content["units"].get(name, {})
        return facts

    def write(self, state: str | None = None) -> None:
        """Writes the file. A failure does not stop the run."""
        if state is not None:
            self._content["state"] = state
        self._content["counts"] = Counter(unit["status"] for unit in self._content["units"].values())
        self._content["updated"] = _now()
        with suppress(OSError, MechstudyError):
            write_json_atomic(self._folder.path / PROGRESS, self._content)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
