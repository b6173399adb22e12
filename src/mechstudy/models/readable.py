"""Whether a file of a model or dictionary can be opened and is the file itself. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from mechstudy.core.errors import MechstudyError

_POINTER = b"version https://git-lfs"


def check_readable(path: Path) -> None:
    """Checks that a file can be opened and is the file itself.

    Raises:
        MechstudyError: a dangling link, a folder, no permission, or a pointer of Git LFS.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_POINTER))
    except OSError as error:
        what = f"{path.name} cannot be read: {error.strerror}"
        fix = "check the file's permissions"
        if path.is_symlink() and not path.exists():
            what = f"{path.name} is a link to {path.readlink()}, which is not there"
            fix = "fetch the model again"
        elif path.is_dir():
            what, fix = f"{path.name} is a folder", "a file of that name, or rename the folder"
        raise MechstudyError(what, where=str(path.parent), fix=fix) from None
    if head == _POINTER:
        raise MechstudyError(
            f"{path.name} is a pointer of Git LFS, not the file itself",
            where=str(path.parent),
            fix="`git lfs pull` in the folder, or fetch the model with `hf download`",
        )
