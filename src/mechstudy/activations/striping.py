"""Large stores on Lustre, spread over several of its servers before their files are written."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mechstudy.activations.staging import MOUNTS, file_system

_BYTES_PER_STRIPE = 8 << 30  # of the largest file: smaller ones gain nothing from a second server
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
    """Makes the folder, and has Lustre spread the files that will be written there over several servers.

    Nothing is done on other file systems, where there is no ``lfs``, or where the folder already holds files: a file
    keeps what it was made with. A failure is told, with the command to try by hand, and is never an error.

    Args:
        largest_file: bytes; ``auto`` takes a server for each 8 GiB, at most 16.
        setting: ``auto``, ``off``, or the number of servers.

    Returns:
        The number of servers asked for; None where nothing was.
    """
    count = _count(setting, largest_file)
    lfs = shutil.which("lfs")
    if count is None or lfs is None or file_system(_existing(folder), mounts) != "lustre":
        return None
    with suppress(OSError):  # who writes there says it better
        folder.mkdir(parents=True, exist_ok=True)
        if any(path.is_file() for path in folder.iterdir()):
            return None
    command = [lfs, "setstripe", "-c", str(count), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        problem = None if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"
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
