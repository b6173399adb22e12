"""A short name for every number of a report, by which `mechstudy reproduce` finds it again.

A number lives at an address: unit, file, and a JSON pointer into it (RFC 6901; of a CSV file: the row's id, the
column). Its handle is made from the address alone, so it stays the same from run to run and from study to study.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LENGTH = 7
# The files that hold what the pages show, by phase; a full address may name any file.
FILES: Mapping[str, tuple[str, ...]] = {
    "model": ("model.json",),
    "prompts": ("summary.json",),
    "baseline": ("summary.json", "train.csv", "test.csv"),
    "train": ("evaluation.json",),
    "variant": ("evaluation.json", "agreement.json"),
    "attribute": ("scores.json",),
    "intervene": ("summary.json",),
}
LOGS = ("scalars.jsonl", "timing.json", "tensorboard/")  # hold clock times, so no two runs write the same
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
        return handle_of(str(self))

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that the pointer goes along."""
        return tuple(part.replace("~1", "/").replace("~0", "~") for part in self.pointer.split("/")[1:])

    def below(self, *keys: str | int) -> Address:
        """The address of something inside."""
        return Address(self.unit, self.file, self.pointer + "".join(f"/{_escaped(key)}" for key in keys))


def handle_of(address: str) -> str:
    """The handle of an address, given as text."""
    return base64.b32encode(hashlib.sha256(address.encode()).digest())[:LENGTH].decode().lower()


def parse_address(text: str) -> Address | None:
    """``train[3]/evaluation.json#/r2``; None where the text is no address."""
    match = _ADDRESS.fullmatch(text)
    return Address(match["unit"], match["file"], match["pointer"]) if match else None


def content_of(file: str, data: bytes) -> Any:
    """A file as JSON; rows of CSV by their ``id``, cells that are numbers as numbers.

    Raises:
        ValueError: it cannot be read as what its name says.
    """
    if not file.endswith(".csv"):
        return json.loads(data)
    rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
    return {str(row.get("id", i)): {k: _cell(v) for k, v in row.items()} for i, row in enumerate(rows)}


def at(content: Any, pointer: str) -> Any:
    """What a pointer leads to.

    Raises:
        KeyError: nothing is there.
    """
    for key in Address("", "", pointer).keys:
        try:
            content = content[int(key)] if isinstance(content, list) else content[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise KeyError(pointer) from None
    return content


def addresses(unit: str, file: str, content: Any) -> Iterator[Address]:
    """Everything in a file that has an address, the whole of it first."""
    stack = [(Address(unit, file), content)]
    while stack:
        address, value = stack.pop()
        yield address
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        stack.extend((address.below(key), item) for key, item in items)


def differences(before: Any, after: Any, pointer: str = "") -> list[tuple[str, Any, Any]]:
    """Pointer, value before and value after, of everything that is not equal."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(dict.fromkeys([*before, *after]))
        pairs = [(f"{pointer}/{_escaped(key)}", before.get(key), after.get(key)) for key in keys]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(f"{pointer}/{i}", a, b) for i, (a, b) in enumerate(zip(before, after, strict=True))]
    else:
        return [] if before == after else [(pointer, before, after)]
    return [found for where, a, b in pairs for found in differences(a, b, where)]


def _escaped(key: str | int) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


def _cell(text: str | None) -> Any:
    try:
        return float(text) if text else text
    except ValueError:
        return text
