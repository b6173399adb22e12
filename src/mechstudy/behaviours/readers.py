"""Rows of a prompts file: JSON Lines, JSON, CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError

Row = dict[str, Any]
_INDEX = ("", "Unnamed: 0")  # the column of row numbers that pandas writes
_BOM = b"\xef\xbb\xbf"  # the byte order mark that Windows editors write
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # its marks, in either byte order
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "a zip or Excel file", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz"}
_DELIMITERS = (",", ";", "\t")  # tables saved where the comma is the decimal mark have semicolons


class Broken(ValueError):
    """A line of the file that cannot be used.

    Attributes:
        what: the defect with this line's details.
        fix: what a user can do about it.
        kind: short name of the defect, the same for all lines that have it.
    """

    def __init__(self, what: str, fix: str, kind: str = "not a prompt pair") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.kind = kind


@dataclass
class Rows:
    """What a file holds, by line number (in JSON arrays and Parquet, by the number of the item, from 1).

    Attributes:
        rows: the rows that can be read.
        broken: the others.
    """

    rows: dict[int, Row] = field(default_factory=dict)
    broken: dict[int, Broken] = field(default_factory=dict)


def read_rows(path: Path) -> Rows:
    """The rows of a file; its ending says which format it has, and JSON Lines is the default.

    Raises:
        MechstudyError: the file cannot be read as a whole, or holds no rows.
    """
    reader = _READERS.get(path.suffix.lower(), _jsonl)
    found = Rows()
    for number, row in reader(path):
        if isinstance(row, Broken):
            found.broken[number] = row
        else:
            found.rows[number] = row
    if not found.rows and not found.broken:
        raise MechstudyError("no prompts in the file", where=str(path), fix="one JSON object a line")
    return found


def _bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MechstudyError(
            f"cannot read the prompts: {error.strerror}",
            where=str(path),
            fix="a file that exists and can be read; relative paths start from the current folder",
        ) from error
    for mark, kind in _PACKED.items():
        if content.startswith(mark):
            raise MechstudyError(f"the file is {kind}, not text", where=str(path), fix="unpack it, or save it as JSONL")
    if content.startswith(_UTF16):
        raise MechstudyError("the file is UTF-16", where=str(path), fix="save the file as UTF-8")
    return content.removeprefix(_BOM)


def _jsonl(path: Path) -> Iterator[tuple[int, Row | Broken]]:
    for number, raw in enumerate(_bytes(path).split(b"\n"), start=1):
        if raw.strip():
            try:
                yield number, _object(raw)
            except Broken as error:
                yield number, error


def _unique(items: list[tuple[str, Any]]) -> Row:
    keys = [key for key, _ in items]
    for key in keys:
        if keys.count(key) > 1:
            raise Broken(f"key {key!r} occurs twice", "keep one")
    return dict(items)


def _object(raw: bytes) -> Row:
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise Broken(f"not UTF-8 at byte {error.start + 1} of the line", "save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise Broken(
            f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}", "one JSON object a line"
        ) from error
    except Broken:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise Broken(f"not readable: {error}", "plain texts and token indices") from error
    except RecursionError as error:
        raise Broken("not a prompt: nested too deeply", "one flat JSON object a line") from error
    return _is_object(row)


def _is_object(row: object) -> Row:
    if not isinstance(row, dict):
        raise Broken(f"a JSON {type(row).__name__}, not an object", 'a line is {"clean": ..., ...}')
    return row


def _json(path: Path) -> Iterator[tuple[int, Row | Broken]]:
    """An array of objects, alone or as the only array of an object (``{"prompts": [...]}``); else JSON Lines."""
    try:
        data = json.loads(_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError):  # several documents: published .json files are often JSON Lines
        yield from _jsonl(path)
        return
    if isinstance(data, dict):
        arrays = [value for value in data.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        data = arrays[0] if len(arrays) == 1 else [data]
    if not isinstance(data, list):
        raise MechstudyError(
            f"a JSON {type(data).__name__} holds no prompts", where=str(path), fix="an array of objects, or JSON Lines"
        )
    for number, item in enumerate(data, start=1):
        try:
            yield number, _is_object(item)
        except Broken as error:
            yield number, error


def _delimiter(path: Path, text: str) -> str:
    """What parts the fields of the table: a tab in a .tsv, else what parts most fields of the header."""
    if path.suffix.lower() == ".tsv":
        return "\t"

    def fields(delimiter: str) -> int:
        try:
            return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []))
        except csv.Error:
            return 0

    return max(_DELIMITERS, key=fields)


def _csv(path: Path) -> Iterator[tuple[int, Row | Broken]]:
    """Every value stays the text that the file holds: ``04`` is not the number 4. Empty fields are absent."""
    try:
        text = _bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise MechstudyError(
            f"not UTF-8 at byte {error.start + 1}", where=str(path), fix="save the file as UTF-8"
        ) from error
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text))
    header: list[str] | None = None
    while True:
        number = lines.line_num + 1
        try:
            values = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, Broken(f"not CSV: {error}", "quote fields that hold quotes or line ends")
            continue
        if header is None:
            header = values
            if repeated := [name for name in header if header.count(name) > 1 and name]:
                raise MechstudyError(
                    f"two columns are called {repeated[0]!r}", where=f"{path}:1", fix="a name of its own for each"
                )
        elif values and len(values) != len(header):
            yield number, Broken(f"{len(values)} fields, not {len(header)}", "quote fields that hold what parts them")
        elif values:
            named = zip(header, values, strict=True)
            yield number, {name: value for name, value in named if value and name not in _INDEX}


def _parquet(path: Path) -> Iterator[tuple[int, Row | Broken]]:
    import polars as pl  # slow to import, and other files do without it

    try:
        frame = pl.read_parquet(path)
    except Exception as error:  # polars passes on the errors of several layers
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MechstudyError(
            "cannot be read as Parquet", where=str(path), facts={"reason": reason}, fix="another copy of the file"
        ) from error
    yield from enumerate(frame.iter_rows(named=True), start=1)


_READERS = {".parquet": _parquet, ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv}
ENDINGS = tuple(_READERS)
