"""Typed access to JSON objects that other tools wrote, with errors that name the field."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from mechstudy.core.errors import MechstudyError

_LONGEST = 60  # characters of a foreign value that an error shows
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2  # a small file can hold what is exponentially long when written out
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = _LONGEST


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        MechstudyError: the file is absent, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))  # with the mark that Windows editors write
    except FileNotFoundError as error:
        raise MechstudyError(
            f"no dictionary here: {path.name} is missing", where=str(path.parent), fix="the folder that holds it"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise MechstudyError(
            f"{path.name} cannot be read as JSON",
            where=str(path),
            facts={"reason": str(error)},
            fix="copy or download it again",
        ) from error
    if not isinstance(content, dict):
        raise MechstudyError(
            f"{path.name} is not a JSON object", where=str(path), facts={"found": shown(content)}, fix="copy it again"
        )
    return content


class Fields:
    """One JSON object, read by type. A field that is null counts as absent.

    Every method raises MechstudyError, with the file and the field, if the value has another type.
    """

    def __init__(self, content: Mapping[str, Any], where: Path, inside: str = "") -> None:
        self.content = content
        self.where = where
        self._inside = inside

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self._of(name, default)
        if not isinstance(value, str):
            self._refuse(name, "a string")
        return value

    def whole(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`; 32.0 counts as 32, true does not count as 1."""
        value = self._of(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self._refuse(name, "a positive integer" if least == 1 else f"an integer of at least {least}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._of(name, default)
        try:
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 < float(value) < math.inf:
                return float(value)
        except OverflowError:  # an integer of hundreds of digits
            pass
        self._refuse(name, "a positive number")

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._of(name, default)
        if not isinstance(value, bool):
            self._refuse(name, "true or false")
        return value

    def table(self, name: str) -> Fields:
        """An object inside this one; an empty one where it is absent."""
        value = self._of(name, {})
        if not isinstance(value, dict):
            self._refuse(name, "an object")
        return Fields(value, self.where, f"{self._inside}{name}.")

    def __contains__(self, name: str) -> bool:
        return self.content.get(name) is not None

    def _of(self, name: str, default: Any) -> Any:
        value = self.content.get(name)
        return default if value is None else value

    def _refuse(self, name: str, wanted: str) -> NoReturn:
        value = shown(self.content[name]) if name in self.content else "nothing"
        raise MechstudyError(
            f"{self._inside}{name} must be {wanted}", where=str(self.where), facts={"found": value},
            fix="correct it, or copy the file again",
        )  # fmt: skip


def shown(value: Any) -> str:
    """A foreign value as an error shows it: on one line and short, however deeply nested it is."""
    text = _SHORT.repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
