"""Checksums of a store's files: sha256 of the whole file, and crc32 of every 4 MiB to locate damage."""

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
    """Size, sha256 (hex) and crc32 of every ``block`` bytes of a file; the last block may be shorter."""

    bytes: int
    sha256: str
    crc32: tuple[int, ...]
    block: int = BLOCK


def sum_of(path: Path, block: int = BLOCK) -> FileSum:
    """The checksums of a file, from one sequential read."""
    digest, sums, size = hashlib.sha256(), [], 0
    buffer = memoryview(bytearray(block))
    with path.open("rb", buffering=0) as file:
        while count := _read_full(file.fileno(), buffer, size):
            digest.update(buffer[:count])
            sums.append(zlib.crc32(buffer[:count]))
            size += count
    return FileSum(size, digest.hexdigest(), tuple(sums), block)


def sums_of(files: Sequence[Path], block: int = BLOCK) -> list[FileSum]:
    """The checksums of several files, up to four at a time."""
    workers = max(1, min(4, len(files), len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda file: sum_of(file, block), files))


def check_files(files: Iterable[tuple[Path, FileSum]]) -> None:
    """Reads files from end to end and compares them with their checksums.

    Raises:
        MechstudyError: a file differs; the first one is named, with its first block that differs.
    """
    listed = list(files)
    block = next((expected.block for _, expected in listed if expected.crc32), BLOCK)
    for (path, expected), actual in zip(listed, sums_of([path for path, _ in listed], block), strict=True):
        if actual.sha256 == expected.sha256:
            continue
        differing = (n for n, (a, b) in enumerate(zip(expected.crc32, actual.crc32, strict=False)) if a != b)
        raise damaged(path, next(differing, None), block)


def damaged(path: Path, number: int | None, block: int) -> MechstudyError:
    """The error for a file that differs from what was written, in a block if that is known."""
    where = {} if number is None else {"block": f"{number:,}, bytes {number * block:,} to {(number + 1) * block - 1:,}"}
    return MechstudyError(
        f"{path.name} is damaged: it does not match its checksum",
        where=str(path.parent),
        facts=where,
        fix="delete the artifact (mechstudy verify sets it aside) and capture it again",
    )


class BlockCheck:
    """Compares the blocks of a file with their checksums while it is read, each block once.

    Bytes that the reader skips are read here if the rest of their block was read.
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
        """Takes the file's bytes from ``offset`` on, as consecutive pieces.

        Args:
            file: descriptor of the open file.
            offset: of the first piece.
            pieces: consecutive parts of the file.

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
    """Fills the buffer from the offset on, with fewer bytes only at the file's end."""
    done = 0
    while done < len(buffer) and (count := os.preadv(file, [buffer[done:]], offset + done)):
        done += count
    return done
