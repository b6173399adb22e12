"""`mechstudy restore`: an archive back into a run's folder. Nothing is published before every checksum was right."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mechstudy.archive.index import REQUIREMENTS, Contents, PackedUnit, lies_beside
from mechstudy.archive.tar import read_archive, read_contents
from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import disk_errors, fsync_file, fsync_folder
from mechstudy.core.progress import Bar, NullProgress, Progress
from mechstudy.core.sizes import human
from mechstudy.store.artifacts import Artifact, ArtifactStore
from mechstudy.store.manifest import MANIFEST, manifest_is_sound, read_manifest, sha256_of
from mechstudy.study.run_folder import ARTIFACTS, STUDY, SUMMARY, RunFolder

STAGING = ".restore-"
_REPLACED = ".replaced"
_LATEST = (SUMMARY, REQUIREMENTS)  # written by what ran last: those that are there are left


@dataclass(frozen=True)
class Restored:
    """Where it went, what was published now, what was there before, and the archive's list."""

    folder: Path
    published: list[str]
    present: list[str]
    contents: Contents


def restore(path: Path, out: Path | None = None, *, progress: Progress | None = None) -> Restored:
    """Unpacks an archive beside the run, checks it all, and only then gives each artifact its place.

    Args:
        out: the run's folder; by default ``runs/<study>`` below the current one.

    Raises:
        MechstudyError: the archive is damaged or holds what it must not, the disk is too small, another process runs
            the study, or something there differs from what is packed. Then nothing has changed.
    """
    progress = progress or NullProgress()
    contents = read_contents(path)
    folder = RunFolder(out or Path("runs") / contents.study)
    with folder.lock(), disk_errors(folder.path):
        there = {unit.name: _present(folder.store, unit, contents) for unit in contents.units if unit.artifact}
        present = {unit.artifact or "" for unit in contents.units if there.get(unit.name)}
        _refuse_other_files(folder, contents)
        staging = _staging(folder.path)
        try:
            wanted = {name: _is_wanted(folder, name, present) for name in contents.files}
            _check_space(folder.path, sum(contents.files[name]["size"] for name, take in wanted.items() if take))
            with progress.bar("restoring", contents.size, "bytes") as bar:
                for name, stream in read_archive(path, contents):
                    _unpack(staging / name, stream, bar, keep=wanted[name] or name.endswith(f"/{MANIFEST}"))
            for unit in contents.units:
                if unit.artifact is not None:
                    _check_manifest(staging / ARTIFACTS / unit.artifact, unit, contents, folder.store)
            published = [unit for unit in contents.units if unit.artifact and unit.artifact not in present]
            for unit in published:
                _publish(staging / ARTIFACTS / str(unit.artifact), folder.store.root / str(unit.artifact))
            for name in sorted(contents.files):
                if wanted[name] and (lies_beside(name) or not name.startswith(f"{ARTIFACTS}/")):
                    _place(staging / name, folder.path / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        _lead_to_report(folder, contents)
    return Restored(folder.path, [unit.name for unit in published], sorted(n for n in there if there[n]), contents)


def _is_wanted(folder: RunFolder, name: str, present: Iterable[str]) -> bool:
    if name.startswith(f"{ARTIFACTS}/") and not lies_beside(name):
        return "/".join(name.split("/")[1:3]) not in present
    return not (folder.path / name).exists()


def _present(store: ArtifactStore, unit: PackedUnit, contents: Contents) -> bool:
    """Whether the artifact is there already with all that is packed of it.

    Raises:
        MechstudyError: it is there and differs, or is damaged.
    """
    place = store.root / str(unit.artifact)
    if not place.exists():
        return False
    manifest = read_manifest(place)
    found = None if manifest is None else store.find(manifest["phase"], manifest["unit"], manifest["id"])
    if found is None or manifest is None or found.path != place:
        raise MechstudyError("a damaged artifact is in the way", where=str(place), fix="mechstudy verify, then restore")
    packed = {name: file for name, file in contents.of_artifact(str(unit.artifact)).items() if name != MANIFEST}
    differ = [n for n, file in packed.items() if found.manifest["files"].get(n, {}).get("sha256") != file["sha256"]]
    if differ:
        raise MechstudyError(
            "the artifact that is there differs from the one that is packed, and nothing is overwritten",
            where=str(place),
            facts={"differing": ", ".join(sorted(differ)[:6])},
            fix="--out <another folder>",
        )
    return not set(packed) & set(found.manifest.get("discarded", ()))


def _refuse_other_files(folder: RunFolder, contents: Contents) -> None:
    for name, file in contents.files.items():
        place = folder.path / name
        if (
            name.startswith(f"{ARTIFACTS}/")
            or lies_beside(name)
            or name in _LATEST
            or not (place.exists() or place.is_symlink())
        ):
            continue
        if not place.is_file() or sha256_of(place) != file["sha256"]:
            raise MechstudyError(
                "the file that is there differs from the one that is packed, and nothing is overwritten",
                where=str(place),
                fix="--out <another folder>",
            )


def _staging(folder: Path) -> Path:
    """An empty folder on the same disk; those that killed processes have left are deleted (the run is locked)."""
    for stale in folder.glob(f"{STAGING}*"):
        shutil.rmtree(stale, ignore_errors=True)
    staging = folder / f"{STAGING}{os.getpid()}"
    staging.mkdir(parents=True)
    return staging


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MechstudyError(
            f"the disk is too small for what is packed by {human(needed - free)}",
            where=str(folder),
            facts={"needed": human(needed), "free": human(free)},
            fix="--out on another disk",
        )


def _unpack(target: Path, stream: Iterable[bytes], bar: Bar, *, keep: bool) -> None:
    """Writes a file into the staging folder; what is there already is only read."""
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
    """An artifact's manifest must be sound, of this unit, and name just the files that are packed."""
    manifest = read_manifest(folder)
    artifact = Artifact(folder, manifest) if manifest is not None and manifest_is_sound(folder / MANIFEST) else None
    if artifact is None or (artifact.unit, artifact.phase, artifact.id) != (unit.name, unit.phase, unit.id):
        raise _unfit(unit, "its manifest is not sound, or is another unit's")
    if store.folder(artifact.phase, artifact.unit, artifact.id) != store.root / str(unit.artifact):
        raise _unfit(unit, "it lies in another's folder")
    gone = set(artifact.manifest.get("discarded", ()))
    promised = {name: file for name, file in artifact.manifest["files"].items() if name not in gone}
    packed = {name: dict(file) for name, file in contents.of_artifact(str(unit.artifact)).items() if name != MANIFEST}
    if {name: {"sha256": f["sha256"], "size": f["size"]} for name, f in promised.items()} != packed:
        raise _unfit(unit, "what is packed is not what its manifest names")


def _unfit(unit: PackedUnit, why: str) -> MechstudyError:
    return MechstudyError(
        f"the archive's artifact of {unit.name} is not as it should be", facts={"cause": why}, fix="use another copy"
    )


def _publish(staged: Path, place: Path) -> None:
    """Renames an artifact to its place; one with less payload gives way, and is deleted after."""
    for folder in sorted(path for path in (staged, *staged.rglob("*")) if path.is_dir()):
        fsync_folder(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(place.name + _REPLACED)
    shutil.rmtree(aside, ignore_errors=True)
    if place.exists():
        place.rename(aside)
    staged.rename(place)
    fsync_folder(place.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _place(staged: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(place)
    fsync_folder(place.parent)


def _lead_to_report(folder: RunFolder, contents: Contents) -> None:
    for unit in contents.units:
        if unit.phase == "report" and unit.id is not None:
            artifact = folder.store.find(unit.phase, unit.name, unit.id)
            if artifact is not None:
                with suppress(MechstudyError):
                    folder.point_report_to(artifact)


def study_command(restored: Restored) -> str:
    """The command that goes on with what was restored."""
    import shlex

    contents = restored.contents
    sets = [word for override in contents.overrides for word in ("--set", override)]
    default = Path("runs") / contents.study == restored.folder
    out = [] if default else ["--out", str(restored.folder)]
    return shlex.join(["mechstudy", "run", str(restored.folder / STUDY), *sets, *out])
