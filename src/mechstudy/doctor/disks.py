"""Checks of the folders that a study writes to: file system, free space, speed and locks."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import disk_errors
from mechstudy.core.sizes import human
from mechstudy.doctor.machine import Check
from mechstudy.machine.file_systems import file_system, is_network
from mechstudy.planning.machine import disk_rates

_LITTLE, _NONE = 20e9, 1e9  # bytes free
_BYTES = 64 << 20
_SLOW = 50e6  # bytes a second
_LOCK = (
    "import fcntl, sys\nf = open(sys.argv[1])\n"
    "try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept BlockingIOError: sys.exit(0)\nsys.exit(1)"
)


def folder(name: str, path: Path) -> list[Check]:
    """All checks of one folder, which is created meanwhile if it does not exist."""
    absent = [p for p in (path, *path.parents) if not p.exists()]  # innermost first
    with suppress(OSError):
        path.mkdir(parents=True, exist_ok=True)
    try:
        with disk_errors(path):
            kind = file_system(path)
            return [free_space(name, path, kind), _speed(name, path, kind), _locks(name, path, kind)]
    except (MechstudyError, OSError) as error:
        what = error.what if isinstance(error, MechstudyError) else str(error)
        fix = "another folder: --out for the run, $MECHSTUDY_CACHE for the cache"
        return [Check(name, "bad", f"{path}: {what}", fix)]
    finally:
        for parent in absent:
            with suppress(OSError):
                parent.rmdir()


def free_space(name: str, path: Path, kind: str) -> Check:
    """The free space of a folder on a file system of this kind."""
    free = shutil.disk_usage(path).free
    text = f"{path.resolve()} on {kind or 'an unknown file system'}{', shared by machines' if is_network(kind) else ''}"
    text += f", {human(free)} free"
    if kind in ("tmpfs", "ramfs"):
        return Check(name, "warn", f"{text}; it is in memory, and lost at a restart", "a folder on a disk")
    if free < _NONE:
        fix = "free some space, or use another folder; `mechstudy plan` shows what a study needs"
        return Check(name, "bad", text, fix)
    if free < _LITTLE:
        fix = "`mechstudy plan` shows what a study needs; dictionaries.source: stream needs least"
        return Check(name, "warn", text, fix)
    return Check(name, "ok", text)


def _speed(name: str, path: Path, kind: str) -> Check:
    write, read = disk_rates(path, _BYTES)
    text = f"{human(write)}/s written (synced), {human(read)}/s read, {_BYTES >> 20} MiB in one file"
    if min(write, read) >= _SLOW:
        return Check(f"{name}, speed", "ok", text)
    fix = "compute.stage: auto with $TMPDIR on a local disk" if is_network(kind) else "a faster disk"
    return Check(f"{name}, speed", "warn", text, f"{fix}, or dictionaries.source: stream")


def _locks(name: str, path: Path, kind: str) -> Check:
    """Whether another process is refused a lock that this one holds."""
    import fcntl

    file = path / f".mechstudy-doctor-{secrets.token_hex(4)}"
    try:
        with file.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                fix = "run one `mechstudy` at a time there; on Lustre ask for the mount option flock"
                return Check(f"{name}, locks", "warn", f"no flock on {kind}: {error.strerror}", fix)
            refused = subprocess.run([sys.executable, "-c", _LOCK, str(file)], check=False, timeout=30).returncode == 0
    finally:
        file.unlink(missing_ok=True)
    if refused:
        return Check(f"{name}, locks", "ok", "flock excludes a second process")
    fix = "never run the same study twice at once there; on Lustre ask for the mount option flock"
    return Check(f"{name}, locks", "warn", f"flock on {kind} does not exclude a second process", fix)
