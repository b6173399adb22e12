"""Reading an archive from end to end, with nothing believed: every name, kind, size and checksum is looked at."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mechstudy.archive.index import CONTENTS, Contents, contents_from, decompressed, safe_parts
from mechstudy.core.errors import MechstudyError

_BLOCK = 1 << 20
_LARGEST_LIST = 256 << 20  # bytes of the list of contents: more is no list


def read_contents(path: Path) -> Contents:
    """The list an archive begins with. Raises as `read_archive`."""
    for name, stream in _members(path):
        return _contents(name, stream)
    raise _broken(path, "it is empty")


def read_archive(path: Path, expected: Contents | None = None) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and bytes (in blocks) of each file after the list; each is to be read to its end.

    Args:
        expected: the list it must have; by default the one it begins with.

    Raises:
        MechstudyError: it is no archive, is not whole, holds a link, a device or a name that leads out, or a file
            whose bytes are not those of the list. It is raised once the file in question has been read.
    """
    contents: Contents | None = None
    seen: set[str] = set()
    for name, stream in _members(path):
        if contents is None:
            contents = _contents(name, stream)
            if expected is not None and contents.to_bytes() != expected.to_bytes():
                raise _broken(path, "its list is not the one that was written")
            continue
        if name not in contents.files or name in seen:
            raise _broken(path, f"{name!r} is in it twice or is not on its list")
        seen.add(name)
        yield name, _checked(path, name, stream, contents)
    if contents is None:
        raise _broken(path, "it is empty")
    if missing := sorted(set(contents.files) - seen):
        raise _broken(path, f"{len(missing)} of {len(contents.files)} files are missing, {missing[0]} first")


def _contents(name: str, stream: Iterator[bytes]) -> Contents:
    if name != CONTENTS:
        raise MechstudyError(f"this is no archive of mechstudy: it begins with {name!r}")
    data = b""
    for block in stream:
        data += block
        if len(data) > _LARGEST_LIST:
            raise MechstudyError("the archive's list is too long to be one")
    try:
        found = json.loads(data)
    except ValueError as error:
        raise MechstudyError(f"the archive's list is not whole: {error}") from error
    return contents_from(found)


def _checked(path: Path, name: str, stream: Iterator[bytes], contents: Contents) -> Iterator[bytes]:
    digest, size, listed = hashlib.sha256(), 0, contents.files[name]
    for block in stream:
        digest.update(block)
        size += len(block)
        if size > listed["size"]:
            break
        yield block
    if size != listed["size"] or digest.hexdigest() != listed["sha256"]:
        raise _broken(path, f"the bytes of {name} are not those that were packed")


def _members(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Every member of the tar; anything but a file with a safe name is refused."""
    with _told(path), decompressed(path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if not member.isreg() or member.issparse():
                raise _broken(path, f"{member.name!r} is no file but a link, folder or device")
            safe_parts(member.name)
            opened = tar.extractfile(member)
            assert opened is not None, "a regular file can be opened"
            yield member.name, _blocks(path, opened)
        while stream.read(_BLOCK):  # to the end, where the compression has its own checksum
            pass


def _blocks(path: Path, opened: IO[bytes]) -> Iterator[bytes]:
    while True:
        with _told(path):
            block = opened.read(_BLOCK)
        if not block:
            return
        yield block


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What tarfile, zlib and zstandard raise of broken bytes, which has no common base, as one error."""
    try:
        yield
    except MechstudyError:
        raise
    except FileNotFoundError:
        raise MechstudyError("there is no such archive", where=str(path)) from None
    except OSError as error:
        if error.errno is not None:  # the disk's word, not the archive's
            raise MechstudyError(f"cannot be read: {error.strerror}", where=str(path)) from error
        raise _broken(path, str(error)) from error
    except Exception as error:
        raise _broken(path, f"{type(error).__name__}: {error}") from error


def _broken(path: Path, why: str) -> MechstudyError:
    return MechstudyError(
        "the archive is damaged, or is none", where=str(path), facts={"cause": why}, fix="use another copy of it"
    )
