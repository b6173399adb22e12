"""Striping of large stores over several servers of a Lustre file system."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mechstudy.machine.file_systems import MOUNTS, file_system

_BYTES_PER_STRIPE = 8 << 30  # of the largest file; smaller files gain nothing from a second server
_MOST = 16
_SECONDS = 20.0


def stripe(
    folder: Path,
    largest_file: int,
    setting: int | str,
    *,
    say: Callable[[str], None] = lambda _: None,
    mounts: Path = MOUNTS,
) -> int | None:
    """Creates a folder whose files Lustre will spread over several servers.

    Does nothing on other file systems, without the ``lfs`` command, or if the folder already holds files, whose
    striping is fixed. A failure is reported with the command to try by hand; it is not an error.

    Args:
        folder: the folder of the store.
        largest_file: bytes of the largest file; ``auto`` uses one server for each 8 GiB, at most 16.
        setting: ``auto``, ``off``, or the number of servers.
        say: receives what was done, or the failure.
        mounts: the file that lists the mounted file systems.

    Returns:
        The number of servers; None if the folder was not striped.
    """
    count = _count(setting, largest_file)
    lfs = shutil.which("lfs")
    if count is None or lfs is None or file_system(_existing(folder), mounts) != "lustre":
        return None
    with suppress(OSError):  # writing the store reports it better
        folder.mkdir(parents=True, exist_ok=True)
        if any(path.is_file() for path in folder.iterdir()):
            return None
    command = [lfs, "setstripe", "-c", str(count), str(folder)]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        problem = None if finished.returncode == 0 else finished.stderr.strip() or f"exit status {finished.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem is not None:
        tried = f"`lfs setstripe -c {count}` said: {problem}"
        say(f"warning: {folder} is not striped: {tried} (compute.stripe: off does not try)")
        return None
    say(f"{folder}: files are striped over {count} Lustre servers")
    return count


def _count(setting: int | str, largest_file: int) -> int | None:
    if setting == "off":
        return None
    if setting != "auto":
        return int(setting)
    count = min(_MOST, -(-largest_file // _BYTES_PER_STRIPE))
    return count if count > 1 else None


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
