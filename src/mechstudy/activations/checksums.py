"""Checksums of a store's files: sha256 of the whole, and crc32 of every 4 MiB, which says where a file is damaged."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mechstudy.core.errors import MechstudyError

BLOCK = 4 << 20  # bytes under one crc32
Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True)
class FileSum:
    """What a file's bytes are: size, sha256 (hex), and crc32 of each ``block`` bytes (the last are fewer)."""

    bytes: int
    sha256: str
    crc32: tuple[int, ...]
    block: int = BLOCK


def sum_of(path: Path, block: int = BLOCK) -> FileSum:
    """One sequential read of a file."""
    digest, sums, size = hashlib.sha256(), [], 0
    buffer = memoryview(bytearray(block))
    with path.open("rb", buffering=0) as file:
        while count := _read_full(file.fileno(), buffer, size):
            digest.update(buffer[:count])
            sums.append(zlib.crc32(buffer[:count]))
            size += count
    return FileSum(size, digest.hexdigest(), tuple(sums), block)


def sums_of(files: Sequence[Path], block: int = BLOCK) -> list[FileSum]:
    """Of several files, a few at a time: both checksums let other threads run."""
    workers = max(1, min(4, len(files), len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda file: sum_of(file, block), files))


def check_files(files: Iterable[tuple[Path, FileSum]]) -> None:
    """Reads files from end to end and compares.

    Raises:
        MechstudyError: of the first file that differs, with its first block that does.
    """
    listed = list(files)
    block = next((expected.block for _, expected in listed if expected.crc32), BLOCK)
    for (path, expected), found in zip(listed, sums_of([path for path, _ in listed], block), strict=True):
        if found.sha256 == expected.sha256:
            continue
        differing = (n for n, (a, b) in enumerate(zip(expected.crc32, found.crc32, strict=False)) if a != b)
        raise damaged(path, next(differing, None), block)


def damaged(path: Path, number: int | None, block: int) -> MechstudyError:
    """The error that names a file and the block of it that is not what was written."""
    where = {} if number is None else {"block": f"{number:,}, bytes {number * block:,} to {(number + 1) * block - 1:,}"}
    return MechstudyError(
        f"{path.name} is damaged: it does not match its checksum",
        where=str(path.parent),
        facts=where,
        fix="delete the artifact (mechstudy verify sets it aside) and capture it again",
    )


class BlockCheck:
    """Compares the blocks of a file as somebody reads it; each is compared once.

    What a reader passes over by a seek is read here where it lies in a block that the reader read in part.
    """

    def __init__(self, path: Path, expected: FileSum) -> None:
        self.path, self.expected = path, expected
        self._left = set(range(len(expected.crc32)))
        self._at, self._crc = 0, 0

    @property
    def done(self) -> bool:
        """True once every block has been compared."""
        return not self._left

    def feed(self, file: int, offset: int, pieces: Iterable[Bytes]) -> None:
        """The pieces, one after the other, are the file's bytes from ``offset`` on.

        Args:
            file: descriptor of the open file.

        Raises:
            MechstudyError: a block differs.
        """
        if not self._left:
            return
        if offset != self._at:
            self._move(file, offset)
        for piece in pieces:
            self._add(memoryview(piece))

    def _move(self, file: int, offset: int) -> None:
        block, size = self.expected.block, self.expected.bytes
        if offset // block != self._at // block or offset < self._at:
            end = min(size, -(-self._at // block) * block)
            self._add(_pread(file, self._at, end - self._at))
            self._at, self._crc = offset // block * block, 0
        self._add(_pread(file, self._at, offset - self._at))

    def _add(self, piece: memoryview) -> None:
        block, size = self.expected.block, self.expected.bytes
        while piece:
            number = self._at // block
            end = min(size, (number + 1) * block)
            part, piece = piece[: end - self._at], piece[end - self._at :]
            if number in self._left:
                self._crc = zlib.crc32(part, self._crc)
            self._at += len(part)
            if self._at == end:
                if number in self._left and self._crc != self.expected.crc32[number]:
                    raise damaged(self.path, number, block)
                self._left.discard(number)
                self._crc = 0


def _pread(file: int, offset: int, size: int) -> memoryview:
    buffer = memoryview(bytearray(max(0, size)))
    return buffer[: _read_full(file, buffer, offset)]


def _read_full(file: int, buffer: memoryview, offset: int) -> int:
    """Fills the buffer from the offset on; fewer bytes only at the file's end."""
    done = 0
    while done < len(buffer) and (count := os.preadv(file, [buffer[done:]], offset + done)):
        done += count
    return done
