"""Restoring of archives: nothing is published before every checksum is verified."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mechstudy.archive.index import READERS, REQUIREMENTS, Contents, PackedUnit, is_record
from mechstudy.archive.tar import disk_too_small, read_archive, read_contents
from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import disk_errors, fsync_file, fsync_folder
from mechstudy.core.progress import Bar, NullProgress, Progress
from mechstudy.store.artifact_writer import put_in_place
from mechstudy.store.artifacts import Artifact, ArtifactStore
from mechstudy.store.manifest import MANIFEST, manifest_is_sound, read_manifest, sha256_of
from mechstudy.study.phases import registry
from mechstudy.study.run_folder import ARTIFACTS, STUDY, SUMMARY, RunFolder

STAGING = ".restore-"
_LATEST = (SUMMARY, REQUIREMENTS, *READERS)  # written by the latest run or a reader: existing ones are kept


@dataclass(frozen=True)
class Restored:
    """The run's folder, the units published and those already present, and the archive's contents."""

    folder: Path
    published: list[str]
    present: list[str]
    contents: Contents


def restore_run(path: Path, out: Path | None = None, *, progress: Progress | None = None) -> Restored:
    """Unpacks an archive into a staging folder, verifies it, and then moves each artifact to its place.

    Args:
        out: the run's folder; by default ``runs/<study>`` in the current folder.

    Raises:
        MechstudyError: the archive is damaged or holds a name that is not allowed, the disk is too small, another
            process runs the study, or an existing file differs from the packed one. Then nothing has changed.
    """
    progress = progress or NullProgress()
    contents = read_contents(path)
    folder = RunFolder(out or Path("runs") / contents.study)
    with folder.lock(), disk_errors(folder.path):
        units = [unit for unit in contents.units if unit.artifact is not None]
        present = {unit.artifact: unit.name for unit in units if _is_present(folder.store, unit, contents)}
        _refuse_other_files(folder, contents)
        staging = _staging(folder.path)
        try:
            wanted = {name: _is_wanted(folder, name, present) for name in contents.files}
            needed = sum(contents.files[name]["size"] for name, take in wanted.items() if take)
            if (refusal := disk_too_small(folder.path, needed, "--out on another disk")) is not None:
                raise refusal
            with progress.bar("restoring", contents.size, "bytes") as bar:
                for name, stream in read_archive(path, contents):
                    unpack(staging / name, stream, bar, keep=wanted[name] or name.endswith(f"/{MANIFEST}"))
            for unit in units:
                _check_manifest(staging / ARTIFACTS / str(unit.artifact), unit, contents, folder.store)
            published = [unit for unit in units if unit.artifact not in present]
            for unit in published:
                _publish(staging / ARTIFACTS / str(unit.artifact), folder.store.root / str(unit.artifact))
            for name in sorted(contents.files):
                if wanted[name] and (is_record(name) or not name.startswith(f"{ARTIFACTS}/")):
                    _place(staging / name, folder.path / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        _link_report(folder, units)
    return Restored(folder.path, [unit.name for unit in published], sorted(present.values()), contents)


def _is_wanted(folder: RunFolder, name: str, present: Container[str | None]) -> bool:
    if name.startswith(f"{ARTIFACTS}/") and not is_record(name):
        return "/".join(name.split("/")[1:3]) not in present
    return not (folder.path / name).exists()


def _is_present(store: ArtifactStore, unit: PackedUnit, contents: Contents) -> bool:
    """Whether the artifact exists with all files that are packed of it.

    Raises:
        MechstudyError: it exists and differs, or is damaged.
    """
    place = store.root / str(unit.artifact)
    if not place.exists():
        return False
    manifest = read_manifest(place)
    artifact = None if manifest is None else store.find(manifest["phase"], manifest["unit"], manifest["id"])
    if artifact is None or artifact.path != place:
        raise MechstudyError("a damaged artifact is in the way", where=str(place), fix="mechstudy verify, then restore")
    packed = contents.of_artifact(str(unit.artifact))
    differ = [n for n, file in packed.items() if artifact.manifest["files"].get(n, {}).get("sha256") != file["sha256"]]
    if differ:
        raise MechstudyError(
            "the existing artifact differs from the packed one, and nothing is overwritten",
            where=str(place),
            facts={"differing": ", ".join(sorted(differ)[:6])},
            fix="--out <another folder>",
        )
    return not set(packed) & set(artifact.manifest.get("discarded", ()))


def _refuse_other_files(folder: RunFolder, contents: Contents) -> None:
    for name, file in contents.files.items():
        place = folder.path / name
        if name.startswith(f"{ARTIFACTS}/") or is_record(name) or name in _LATEST or not os.path.lexists(place):
            continue
        if not place.is_file() or sha256_of(place) != file["sha256"]:
            raise MechstudyError(
                "the existing file differs from the packed one, and nothing is overwritten",
                where=str(place),
                fix="--out <another folder>",
            )


def _staging(folder: Path) -> Path:
    """An empty folder on the same disk; those of killed processes are deleted (the run is locked)."""
    for stale in folder.glob(f"{STAGING}*"):
        shutil.rmtree(stale, ignore_errors=True)
    staging = folder / f"{STAGING}{os.getpid()}"
    staging.mkdir(parents=True)
    return staging


def unpack(target: Path, stream: Iterable[bytes], bar: Bar, *, keep: bool) -> None:
    """Reads a file to its end, and with ``keep`` writes it into the staging folder."""
    if not keep:
        for block in stream:
            bar.advance(len(block))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as opened:
        for block in stream:
            opened.write(block)
            bar.advance(len(block))
    fsync_file(target)


def _check_manifest(folder: Path, unit: PackedUnit, contents: Contents, store: ArtifactStore) -> None:
    """Refuses an artifact whose manifest is damaged, of another unit, or names other files than the packed ones."""
    manifest = read_manifest(folder)
    artifact = Artifact(folder, manifest) if manifest is not None and manifest_is_sound(folder / MANIFEST) else None
    if artifact is None or (artifact.unit, artifact.phase, artifact.id) != (unit.name, unit.phase, unit.id):
        raise _invalid(unit, "its manifest is damaged, or is another unit's")
    if store.folder(artifact.phase, artifact.unit, artifact.id) != store.root / str(unit.artifact):
        raise _invalid(unit, "it is in the folder of another artifact")
    gone = set(artifact.manifest.get("discarded", ()))
    promised = {name: file for name, file in artifact.manifest["files"].items() if name not in gone}
    packed = contents.of_artifact(str(unit.artifact))
    if {name: {"sha256": f["sha256"], "size": f["size"]} for name, f in promised.items()} != packed:
        raise _invalid(unit, "the packed files are not those of its manifest")


def _invalid(unit: PackedUnit, why: str) -> MechstudyError:
    return MechstudyError(
        f"the archive's artifact of {unit.name} is invalid", facts={"cause": why}, fix="use another copy"
    )


def _publish(staged: Path, place: Path) -> None:
    """Renames an artifact to its place; an existing one with less payload is replaced."""
    for folder in sorted(path for path in (staged, *staged.rglob("*")) if path.is_dir()):
        fsync_folder(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    put_in_place(staged, place)


def _place(staged: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(place)
    fsync_folder(place.parent)


def _link_report(folder: RunFolder, units: Sequence[PackedUnit]) -> None:
    for unit in units:
        if unit.id is not None and (artifact := folder.store.find(unit.phase, unit.name, unit.id)) is not None:
            phase = registry.phase_of(unit.phase, artifact.manifest["spec"])
            if phase is not None and phase.concludes:
                with suppress(MechstudyError):
                    folder.point_report_to(artifact)


def study_command(restored: Restored) -> str:
    """The command that continues the restored run."""
    contents = restored.contents
    sets = [word for override in contents.overrides for word in ("--set", override)]
    default = Path("runs") / contents.study == restored.folder
    out = [] if default else ["--out", str(restored.folder)]
    return shlex.join(["mechstudy", "run", str(restored.folder / STUDY), *sets, *out])
