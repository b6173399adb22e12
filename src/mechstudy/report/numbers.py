"""Addresses of a report's numbers, and the short handles by which `mechstudy reproduce` finds them.

A number's address is its unit, its file, and a JSON pointer into it (RFC 6901; in a CSV file: the row's id, the
column). Its handle is a hash of the address alone, so it is the same in every run and study.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LENGTH = 7
# The files of an artifact that hold numbers of the pages; a full address may name any file.
FILES = (
    "model.json", "summary.json", "train.csv", "test.csv", "evaluation.json", "agreement.json", "scores.json",
)  # fmt: skip
LOGS = ("scalars.jsonl", "timing.json", "tensorboard/")  # hold clock times, so they differ between equal runs
_ADDRESS = re.compile(r"(?P<unit>[^/\[#]+(\[[^\]]*\])?)/(?P<file>[^#]+)#(?P<pointer>(/.*)?)")


@dataclass(frozen=True)
class Address:
    """Where a number, or a group of them (a row, a test), is kept. An empty ``pointer`` is the whole file."""

    unit: str
    file: str
    pointer: str = ""

    def __str__(self) -> str:
        return f"{self.unit}/{self.file}#{self.pointer}"

    @property
    def handle(self) -> str:
        """Seven letters and digits."""
        digest = hashlib.sha256(str(self).encode()).digest()
        return base64.b32encode(digest)[:LENGTH].decode().lower()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the pointer, unescaped."""
        return tuple(part.replace("~1", "/").replace("~0", "~") for part in self.pointer.split("/")[1:])

    def below(self, *keys: str | int) -> Address:
        """The address of something inside."""
        return Address(self.unit, self.file, self.pointer + "".join(f"/{_escaped(key)}" for key in keys))


def parse_address(text: str) -> Address | None:
    """``train[3]/evaluation.json#/r2``; None where the text is no address."""
    match = _ADDRESS.fullmatch(text)
    return Address(match["unit"], match["file"], match["pointer"]) if match else None


def content_of(file: str, data: bytes) -> Any:
    """A file's content: JSON, or the rows of a CSV file by their ``id`` with numeric cells as numbers.

    Raises:
        ValueError: the file is not what its name says.
    """
    if not file.endswith(".csv"):
        return json.loads(data)
    rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
    return {str(row.get("id", i)): {k: _cell(v) for k, v in row.items()} for i, row in enumerate(rows)}


def at(content: Any, pointer: str) -> Any:
    """The value at a pointer.

    Raises:
        KeyError: there is none.
    """
    for key in Address("", "", pointer).keys:
        try:
            content = content[int(key)] if isinstance(content, list) else content[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise KeyError(pointer) from None
    return content


def addresses(unit: str, file: str, content: Any) -> Iterator[Address]:
    """The addresses of all values in a file, the whole file first."""
    stack = [(Address(unit, file), content)]
    while stack:
        address, value = stack.pop()
        yield address
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        stack.extend((address.below(key), item) for key, item in items)


def differences(before: Any, after: Any, pointer: str = "") -> list[tuple[str, Any, Any]]:
    """Pointer, value before and value after, of each value that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(dict.fromkeys([*before, *after]))
        pairs = [(f"{pointer}/{_escaped(key)}", before.get(key), after.get(key)) for key in keys]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(f"{pointer}/{i}", a, b) for i, (a, b) in enumerate(zip(before, after, strict=True))]
    else:
        return [] if before == after else [(pointer, before, after)]
    return [difference for where, a, b in pairs for difference in differences(a, b, where)]


def _escaped(key: str | int) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


def _cell(text: str | None) -> Any:
    try:
        return float(text) if text else text
    except ValueError:
        return text
