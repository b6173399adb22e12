"""Archives of runs: one file, the same bytes each time, read back before it gets its name."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mechstudy.archive.index import CONTENTS, SUFFIX, Compression, Contents, compressed, require
from mechstudy.archive.tar import disk_too_small, read_archive
from mechstudy.archive.writer import Item, Packing, gather, nothing_finished
from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path
from mechstudy.core.progress import Bar, NullProgress, Progress
from mechstudy.planning.opened_study import OpenedStudy
from mechstudy.store.manifest import sha256_of
from mechstudy.study.run_folder import ARTIFACTS, RunFolder


@dataclass(frozen=True)
class Archived:
    """A finished archive: its size and sha256, its contents, and the bytes of payload left out."""

    path: Path
    size: int
    sha256: str
    contents: Contents
    left_out: int


def archive_run(
    opened: OpenedStudy,
    out: Path | None = None,
    *,
    compression: Compression = "gzip",
    everything: bool = False,
    sources: bool = True,
    progress: Progress | None = None,
) -> Archived:
    """Packs a run, which is locked meanwhile.

    Args:
        out: the file; by default ``<study>.tar.gz`` (or the compression's own suffix) in the current folder.
        everything: with ``sources``, see `gather`.

    Raises:
        MechstudyError: the file exists, the disk is too small, or an artifact does not match its manifest.
    """
    progress = progress or NullProgress()
    require(compression)
    out = out or Path(f"{opened.study.name}{SUFFIX[compression]}")
    _refuse_existing(out)
    if not (opened.folder / ARTIFACTS).is_dir():  # before the lock, which is a file in the folder
        raise nothing_finished(opened)
    with RunFolder(opened.folder).lock():
        packing = gather(opened, everything=everything, sources=sources)
        _check_space(out, packing, compression, progress)
        with atomic_path(out) as temporary:
            with progress.bar("packing", packing.contents.size, "bytes") as bar:
                write_tar(temporary, packing, compression, bar)
            with progress.bar("reading it back", packing.contents.size, "bytes") as bar:
                for _, stream in read_archive(temporary, packing.contents):
                    for block in stream:
                        bar.advance(len(block))
            size, sha = temporary.stat().st_size, sha256_of(temporary)
            _refuse_existing(out)
    return Archived(out, size, sha, packing.contents, packing.left_out)


def tar_size(packing: Packing) -> int:
    """An upper bound of the uncompressed tar's bytes: names longer than 100 characters take more blocks."""
    block, record = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
    sizes = [len(packing.contents.to_bytes()), *(item.size for item in packing.items)]
    names = [len(item.name.encode()) for item in packing.items]
    needed = sum(block + -(-size // block) * block for size in sizes) + 2 * block
    needed += sum(3 * block + length for length in names if length > 100)
    return -(-needed // record) * record


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise MechstudyError("the file already exists", where=str(out), fix="-o <another file>")


def _check_space(out: Path, packing: Packing, compression: Compression, progress: Progress) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    refusal = disk_too_small(folder, tar_size(packing), "-o on another disk, or --compress gzip")
    if refusal is None:
        return
    if compression == "none":
        raise refusal
    free, needed = refusal.facts["free"], refusal.facts["needed"]
    progress.log(f"the disk has {free} free, the archive has {needed} before compression: it may not fit")


def write_tar(temporary: Path, packing: Packing, compression: Compression, bar: Bar) -> None:
    """Writes the list of contents, then every item in order."""
    listed = packing.contents.to_bytes()
    first = Item(CONTENTS, hashlib.sha256(listed).hexdigest(), len(listed), data=listed)
    with (
        temporary.open("wb") as raw,
        compressed(raw, compression) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for item in (first, *packing.items):
            add_item(tar, item, bar)


def add_item(tar: tarfile.TarFile, item: Item, bar: Bar) -> None:
    """Adds one file to the tar.

    Raises:
        MechstudyError: its bytes are not those of its checksum.
    """
    info = tarfile.TarInfo(item.name)
    info.size, info.mode, info.mtime = item.size, 0o644, 0
    if item.data is not None:
        tar.addfile(info, io.BytesIO(item.data))
        bar.advance(0 if item.name == CONTENTS else item.size)
        return
    assert item.path is not None
    try:
        with item.path.open("rb") as opened:
            hashed = _Hashed(opened, bar)
            tar.addfile(info, hashed)
            complete = not opened.read(1)
    except (tarfile.TarError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _changed(item) from error  # tarfile's own: the file is shorter than its manifest says
    if hashed.digest() != item.sha256 or not complete:
        raise _changed(item)


def _changed(item: Item) -> MechstudyError:
    return MechstudyError(
        "the file does not match its checksum, so nothing was packed",
        where=str(item.path),
        fix="mechstudy verify; the next run rebuilds damaged artifacts",
    )


class _Hashed:
    """A file whose bytes are hashed while they are read."""

    def __init__(self, opened: IO[bytes], bar: Bar) -> None:
        self._opened, self._bar, self._hash = opened, bar, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._opened.read(size)
        self._hash.update(block)
        self._bar.advance(len(block))
        return block

    def digest(self) -> str:
        return self._hash.hexdigest()
