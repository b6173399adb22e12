"""Reading of archives, with every name, member type, size and checksum verified."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mechstudy.archive.index import CONTENTS, Contents, contents_from, decompressed, safe_parts
from mechstudy.core.errors import MechstudyError
from mechstudy.core.sizes import human

_BLOCK = 1 << 20
_LARGEST_LIST = 256 << 20  # bytes of a list of contents


def read_contents(path: Path) -> Contents:
    """The list of contents at the start of an archive. Raises as `read_archive`."""
    return _contents(path, _members(path))


def read_archive(path: Path, expected: Contents | None = None) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and bytes (in blocks) of each file after the list; the caller must read each to its end.

    Args:
        path: the archive.
        expected: the list it must have; by default the one it begins with.

    Raises:
        MechstudyError: it is no archive, is incomplete, holds a link, a device or a name that leads out of its folder,
            or a file whose bytes do not match the list. It is raised once the file in question has been read.
    """
    members = _members(path)
    contents = _contents(path, members)
    if expected is not None and contents.to_bytes() != expected.to_bytes():
        raise _damaged(path, "its list of contents is not the one that was written")
    names: set[str] = set()
    for name, stream in members:
        if name not in contents.files or name in names:
            raise _damaged(path, f"{name!r} is in it twice or is not in its list of contents")
        names.add(name)
        yield name, _checked(path, name, stream, contents)
    if missing := sorted(set(contents.files) - names):
        raise _damaged(path, f"{len(missing)} of {len(contents.files)} files are missing, {missing[0]} first")


def _contents(path: Path, members: Iterator[tuple[str, Iterator[bytes]]]) -> Contents:
    """The list of contents, from the first member."""
    name, stream = next(members, ("", iter(())))
    if name != CONTENTS:
        why = f"it begins with {name!r}" if name else "it is empty"
        fix = "a file that `mechstudy archive` wrote"
        raise MechstudyError(f"this is not an archive of mechstudy: {why}", where=str(path), fix=fix)
    data = b""
    for block in stream:
        data += block
        if len(data) > _LARGEST_LIST:
            raise _damaged(path, "its list of contents is too long")
    try:
        values = json.loads(data)
    except ValueError as error:
        raise _damaged(path, f"its list of contents: {error}") from error
    return contents_from(values)


def _checked(path: Path, name: str, stream: Iterator[bytes], contents: Contents) -> Iterator[bytes]:
    digest, size, listed = hashlib.sha256(), 0, contents.files[name]
    for block in stream:
        digest.update(block)
        size += len(block)
        if size > listed["size"]:
            break
        yield block
    if size != listed["size"] or digest.hexdigest() != listed["sha256"]:
        raise _damaged(path, f"the bytes of {name} do not match its checksum")


def _members(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Every member of the tar; raises for anything but a file with a safe name."""
    with _as_damage(path), decompressed(path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if not member.isreg() or member.issparse():
                raise _damaged(path, f"{member.name!r} is a link, folder or device")
            safe_parts(member.name)
            opened = tar.extractfile(member)
            assert opened is not None, "a regular file can be opened"
            yield member.name, _blocks(path, opened)
        while stream.read(_BLOCK):  # up to the checksum of the compression
            pass


def _blocks(path: Path, opened: IO[bytes]) -> Iterator[bytes]:
    while True:
        with _as_damage(path):
            block = opened.read(_BLOCK)
        if not block:
            return
        yield block


def disk_too_small(folder: Path, needed: int, fix: str) -> MechstudyError | None:
    """The error where a folder's disk has fewer bytes free than an archive needs."""
    free = shutil.disk_usage(folder).free
    if needed <= free:
        return None
    return MechstudyError(
        f"the disk is too small for the archive by {human(needed - free)}",
        where=str(folder),
        facts={"needed": human(needed), "free": human(free)},
        fix=fix,
    )


@contextmanager
def _as_damage(path: Path) -> Iterator[None]:
    """One error for whatever tarfile, zlib and zstandard raise on damaged bytes."""
    try:
        yield
    except MechstudyError:
        raise
    except FileNotFoundError:
        fix = "a file that `mechstudy archive` wrote"
        raise MechstudyError("there is no such archive", where=str(path), fix=fix) from None
    except OSError as error:
        if error.errno is not None:  # the disk failed, not the archive
            raise MechstudyError(f"cannot be read: {error.strerror}", where=str(path)) from error
        raise _damaged(path, str(error)) from error
    except Exception as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, why: str) -> MechstudyError:
    return MechstudyError("the archive is damaged", where=str(path), facts={"cause": why}, fix="use another copy of it")
