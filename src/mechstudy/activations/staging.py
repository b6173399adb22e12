"""Copies of a store's rows on the node's local disk, for training that reads them many times.

On a cluster the store is on a file system that hundreds of nodes share, and every epoch reads all of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mechstudy.activations.checksums import BLOCK, damaged
from mechstudy.activations.reader import files_of, row_files
from mechstudy.activations.store import Store
from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import disk_errors
from mechstudy.machine.file_systems import MOUNTS, file_system, is_network
from mechstudy.models.sites import Site

SPARE = 1 << 30  # bytes that stay free after the copy


@contextmanager
def staged(
    store: Store,
    sites: Sequence[Site],
    stage: str = "auto",
    *,
    epochs: float = 2.0,
    say: Callable[[str], None] = lambda _: None,
    environment: Mapping[str, str] = os.environ,
    mounts: Path = MOUNTS,
) -> Iterator[Store]:
    """Inside the block, the store with the rows of ``sites`` copied to a local disk; the copy is deleted at the end.

    Args:
        store: the store.
        sites: the sites whose rows are copied.
        stage: ``off``; a folder; or ``auto``, which uses ``$SLURM_TMPDIR`` or else ``$TMPDIR`` if the store is on a
            network file system, the folder is not and has room, and the rows are read more than once.
        epochs: how often the rows will be read.
        say: receives what was copied, or why nothing was.
        environment: where variables are looked up.
        mounts: the file that lists the mounted file systems.

    Raises:
        MechstudyError: the named folder has no room or cannot be written, or a file does not match its checksum.
    """
    files = row_files(files_of(store, site) for site in dict.fromkeys(sites))
    needed = sum(file.stat().st_size for file in files)
    target = _target(store, stage, needed, epochs, say, environment, mounts)
    if target is None:
        yield store
        return
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        _remove_stale_copies(target)
        folder = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-", dir=target))
    try:
        with disk_errors(target):
            copies = {file: _copy(store, file, folder / file.name) for file in files}
        say(f"{needed:,} bytes of {len(files)} files copied to {folder}, where they are read from")
        yield store.reading(copies)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _target(
    store: Store,
    stage: str,
    needed: int,
    epochs: float,
    say: Callable[[str], None],
    environment: Mapping[str, str],
    mounts: Path,
) -> Path | None:
    """The folder to copy to; None if nothing is copied."""
    if stage == "off":
        return None
    if stage != "auto":
        target = _named(stage, environment)
        if needed + SPARE > _free(target):
            raise MechstudyError(
                "compute.stage: the folder has not enough room for the rows",
                where=str(target),
                facts={"needed": f"{needed:,} bytes, and {SPARE:,} to spare", "free": f"{_free(target):,} bytes"},
                fix="stage: off, or another folder",
            )
        return target
    kind = file_system(store.folder, mounts)
    local = environment.get("SLURM_TMPDIR") or environment.get("TMPDIR")
    if not is_network(kind) or not local or epochs <= 1:
        return None
    target = Path(local)
    if is_network(file_system(target, mounts)) or not target.is_dir():
        return None
    if needed + SPARE > _free(target):
        say(f"the rows are read from {kind}: {target} has no room for their {needed:,} bytes")
        return None
    return target


def _named(stage: str, environment: Mapping[str, str]) -> Path:
    text = re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: environment.get(m[1] or m[2], m[0]), stage)
    path = Path(text).expanduser()
    if "$" in text or not path.is_absolute():
        raise MechstudyError(
            f"compute.stage: {text!r} is not a folder's whole path",
            facts={"written": stage},
            fix="stage: auto, off, or an absolute path; $NAMES are replaced where they are set",
        )
    return path


def _free(folder: Path) -> int:
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _copy(store: Store, source: Path, target: Path) -> Path:
    """Copies a file, and compares its size and sha256 with those the store recorded."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(BLOCK))
    with source.open("rb", buffering=0) as reading, target.open("wb", buffering=0) as writing:
        while count := reading.readinto(buffer):
            digest.update(buffer[:count])
            rest = buffer[:count]
            while rest:
                rest = rest[writing.write(rest) :]
            size += count
    expected = store.sha256(source.name)
    if expected not in (None, digest.hexdigest()) or not size == target.stat().st_size == source.stat().st_size:
        raise damaged(source, None, BLOCK)
    return target


def _prefix() -> str:
    return f"mechstudy-stage-{socket.gethostname()}-"


def _remove_stale_copies(target: Path) -> None:
    """Deletes copies left by killed processes of this machine."""
    for folder in target.glob(f"{_prefix()}*"):
        pid = folder.name.removeprefix(_prefix()).split("-")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
