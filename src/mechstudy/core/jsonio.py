"""JSON: canonical text for hashing, and atomic files without NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path, not_stale


def jsonable(obj: Any) -> Any:
    """Plain dicts, lists, strings, numbers, booleans and None; NaN and infinities become None.

    Takes tuples, sets (sorted), paths, enums, dataclasses, configs (anything with ``canonical()``)
    and arrays (anything with ``tolist()``: numpy, torch).

    Raises:
        TypeError: a value has no JSON form, or two keys of a mapping have the same text.
    """
    kind = type(obj)
    if obj is None or kind is str or kind is int or kind is bool:
        return obj
    if kind is float:
        return obj if math.isfinite(obj) else None
    if kind is list or kind is tuple:
        return [jsonable(value) for value in obj]
    if isinstance(obj, Mapping):
        plain = {_key(key): jsonable(value) for key, value in obj.items()}
        if len(plain) != len(obj):
            raise TypeError(f"two keys have the same text in {list(obj)}")
        return plain
    return _jsonable_rare(obj)


def _jsonable_rare(obj: Any) -> Any:
    if isinstance(obj, Enum):
        return jsonable(obj.value)
    for base in (str, int, float):
        if isinstance(obj, base):
            return jsonable(base(obj))
    if isinstance(obj, (list, tuple)):
        return [jsonable(value) for value in obj]
    if isinstance(obj, Set):
        return sorted((jsonable(value) for value in obj), key=canonical_json)
    if isinstance(obj, PurePath):
        return obj.as_posix()
    if hasattr(obj, "canonical"):
        return jsonable(obj.canonical())
    if is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: jsonable(getattr(obj, field.name)) for field in fields(obj)}
    if hasattr(obj, "tolist"):
        return jsonable(obj.tolist())
    raise TypeError(f"{type(obj).__name__} has no JSON form: {obj!r:.80}")


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    raise TypeError(f"a JSON key must be a string or an integer, not {key!r}")


def canonical_json(obj: Any) -> str:
    """The same text for equal values: keys sorted, no spaces, ASCII, tuples as lists, NaN and infinities as null."""
    return json.dumps(jsonable(obj), sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_bytes(obj: Any, *, indent: int | None = 2) -> bytes:
    """UTF-8 JSON in key order with a final newline. ``indent=None`` writes one line, faster."""
    plain = jsonable(obj)
    try:
        text = json.dumps(plain, indent=indent, allow_nan=False, ensure_ascii=False)
        return (text + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate (half a token's character): escaped, so still valid UTF-8
        return (json.dumps(plain, indent=indent, allow_nan=False) + "\n").encode()


def write_json_atomic(path: Path, obj: Any, *, indent: int | None = 2) -> None:
    """Writes JSON so that a reader sees the old file or the complete new one.

    Raises:
        MechstudyError: the disk is full.
    """
    data = json_bytes(obj, indent=indent)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(data)


def save_json(path: str | Path, obj: Any, what: str, endings: str = ".json") -> Path:
    """Writes JSON to a place that a user names, in a folder that is made if there is none.

    Args:
        path: where to; a leading ``~`` is the home folder.
        obj: what is written.
        what: it is called in the error, as in "graphs cannot be written as ...".
        endings: of names that the error's fix offers.

    Raises:
        MechstudyError: the name does not end in ``.json``, or the disk is full.
    """
    place = Path(path).expanduser()
    if place.suffix != ".json":
        raise MechstudyError(
            f"{what} cannot be written as {place.suffix or 'a file without suffix'!r}",
            where=str(place),
            fix=f"a name that ends in {endings}",
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(place, obj, indent=None)
    return place


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        MechstudyError: the file is absent, unreadable or not valid JSON.
    """
    path = Path(path)
    try:
        return json.loads(not_stale(path.read_bytes))
    except FileNotFoundError:
        raise MechstudyError("no such file", where=str(path)) from None
    except json.JSONDecodeError as error:
        raise MechstudyError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
    except UnicodeDecodeError as error:
        raise MechstudyError(f"not valid JSON: not UTF-8 at byte {error.start}", where=str(path)) from None
    except OSError as error:
        raise MechstudyError(f"cannot be read: {error.strerror}", where=str(path)) from error
