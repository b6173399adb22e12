"""`mechstudy archive`: what is kept of a run in one file, the same bytes each time, read back before it is named."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mechstudy.archive.index import (
    CONTENTS,
    SUFFIX,
    Compression,
    Contents,
    compressed,
    require,
)
from mechstudy.archive.tar import read_archive
from mechstudy.archive.writer import Item, Packing, gather
from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import disk_errors, fsync_file, fsync_folder
from mechstudy.core.progress import Bar, NullProgress, Progress
from mechstudy.core.sizes import human
from mechstudy.runner.study_run import OpenedStudy
from mechstudy.store.manifest import sha256_of

_BLOCK = 512
_RECORD = 10_240


@dataclass(frozen=True)
class Archived:
    """A finished archive: its size and sha256, what is in it, and bytes of payload that are not."""

    path: Path
    size: int
    sha256: str
    contents: Contents
    left_out: int


def archive(
    opened: OpenedStudy,
    out: Path | None = None,
    *,
    compression: Compression = "gzip",
    everything: bool = False,
    sources: bool = True,
    progress: Progress | None = None,
) -> Archived:
    """Packs a run while nobody else works in it.

    Args:
        out: the file; by default ``<study>.tar.gz`` (or as it is compressed) in the current folder.
        everything, sources: as `gather` takes them.

    Raises:
        MechstudyError: the file is there already, the disk is too small, or an artifact is not as its manifest says.
    """
    progress = progress or NullProgress()
    require(compression)
    out = out or Path(f"{opened.study.name}{SUFFIX[compression]}")
    with opened.run(NullProgress()).folder.lock():
        _refuse_existing(out)
        packing = gather(opened, everything=everything, sources=sources)
        _check_space(out, packing, compression, progress)
        with disk_errors(out.parent), _unnamed(out) as temporary:
            with progress.bar("packing", packing.contents.size, "bytes") as bar:
                _write(temporary, packing, compression, bar)
            fsync_file(temporary)
            with progress.bar("reading it back", packing.contents.size, "bytes") as bar:
                for _, stream in read_archive(temporary, packing.contents):
                    for block in stream:
                        bar.advance(len(block))
            size, sha = temporary.stat().st_size, sha256_of(temporary)
            _name(temporary, out)
    return Archived(out, size, sha, packing.contents, _left_out(opened, packing))


def tar_size(packing: Packing) -> int:
    """Bytes of the tar itself, without compression, at most: names longer than 100 characters take more blocks."""
    listed = len(packing.contents.to_bytes())
    sizes = [listed, *(item.size for item in packing.items)]
    long_names = sum(3 * _BLOCK + len(item.name.encode()) for item in packing.items if len(item.name.encode()) > 100)
    blocks = sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in sizes) + long_names
    return -(-(blocks + 2 * _BLOCK) // _RECORD) * _RECORD


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise MechstudyError("there is a file of this name already", where=str(out), fix="-o <another file>")


def _check_space(out: Path, packing: Packing, compression: Compression, progress: Progress) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    needed, free = tar_size(packing), shutil.disk_usage(folder).free
    if needed <= free:
        return
    if compression == "none":
        raise MechstudyError(
            f"the disk is too small for the archive by {human(needed - free)}",
            where=str(folder),
            facts={"needed": human(needed), "free": human(free)},
            fix="-o on another disk, or --compress gzip",
        )
    progress.log(f"the disk has {human(free)} free, the archive has {human(needed)} before compression: it may not fit")


@contextmanager
def _unnamed(out: Path) -> Iterator[Path]:
    """A path beside ``out``, deleted in the end; those of killed processes are deleted first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for stale in out.parent.glob(f".{out.name}.tmp-*"):
        if not _alive(stale):
            stale.unlink(missing_ok=True)
    temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _alive(stale: Path) -> bool:
    import psutil

    pid = stale.name.rpartition("-")[2]
    return pid.isdecimal() and int(pid) != os.getpid() and psutil.pid_exists(int(pid))


def _name(temporary: Path, out: Path) -> None:
    """Gives the file its name, never in place of another file: a link fails where there is one, a rename does not."""
    try:
        os.link(temporary, out)
    except FileExistsError:
        _refuse_existing(out)
    except OSError:  # a file system without hard links
        _refuse_existing(out)
        temporary.rename(out)
    fsync_folder(out.parent)


def _write(temporary: Path, packing: Packing, compression: Compression, bar: Bar) -> None:
    listed = packing.contents.to_bytes()
    first = Item(CONTENTS, hashlib.sha256(listed).hexdigest(), len(listed), data=listed)
    with (
        temporary.open("wb") as raw,
        compressed(raw, compression) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for item in (first, *packing.items):
            _add(tar, item, bar)


def _add(tar: tarfile.TarFile, item: Item, bar: Bar) -> None:
    info = tarfile.TarInfo(item.name)
    info.size, info.mode, info.mtime = item.size, 0o644, 0
    if item.data is not None:
        tar.addfile(info, io.BytesIO(item.data))
        bar.advance(0 if item.name == CONTENTS else item.size)
        return
    assert item.path is not None
    try:
        with item.path.open("rb") as opened:
            counted = _Hashed(opened, bar)
            tar.addfile(info, counted)  # type: ignore[arg-type]  # it only reads
            whole = not opened.read(1)
    except tarfile.TarError as error:
        raise _changed(item) from error
    except OSError as error:
        if error.errno is None:  # tarfile's own: the file is shorter than it said
            raise _changed(item) from error
        raise
    if counted.digest() != item.sha256 or not whole:
        raise _changed(item)


def _changed(item: Item) -> MechstudyError:
    return MechstudyError(
        "the file is not what its checksum says, so nothing was packed",
        where=str(item.path),
        fix="mechstudy verify; the next run makes what is damaged anew",
    )


class _Hashed:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, opened: IO[bytes], bar: Bar) -> None:
        self._opened, self._bar, self._hash = opened, bar, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._opened.read(size)
        self._hash.update(block)
        self._bar.advance(len(block))
        return block

    def digest(self) -> str:
        return self._hash.hexdigest()


def _left_out(opened: OpenedStudy, packing: Packing) -> int:
    """Bytes of the present study's artifacts on disk that are not packed."""
    packed = {
        unit.artifact: packing.contents.of_artifact(unit.artifact) for unit in packing.contents.units if unit.artifact
    }
    total = 0
    for node in opened.run(NullProgress()).evaluate().nodes.values():
        if node.artifact is None:
            continue
        manifest: dict[str, Any] = node.artifact.manifest
        gone = {*manifest.get("discarded", ()), *packed.get(node.artifact.name, ())}
        total += sum(int(file["size"]) for name, file in manifest["files"].items() if name not in gone)
    return total
