"""Translation of pydantic's errors into a MechstudyError with file, line, key, valid values and a fix."""

from __future__ import annotations

import re
import shlex
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.yaml_source import Key, KeyPath, Lines, YamlSource, dotted

_MORE_SHOWN = 10
_ABSENT = object()


@dataclass
class _Mistake:
    """One invalid value or key: its path, the message, and a fix."""

    path: KeyPath
    what: str
    facts: dict[str, str] = field(default_factory=dict)
    fix: str | None = None
    kind: str = ""
    needs: str = ""  # "be an integer": what a type requires of the value
    value: Any = None
    near: str | None = None  # the key that a misspelt one probably means


def describe(error: ValidationError, cls: type[BaseModel], source: YamlSource) -> MechstudyError:
    """The first mistake in the file as a MechstudyError, with the others under ``also``."""
    mistakes = [_mistake(details, cls, source.data) for details in error.errors()]
    mistakes = _without_echoes(_merged(mistakes))
    lines = source.lines
    mistakes.sort(key=lambda mistake: (lines.override(mistake.path) is None, lines.line(mistake.path) or 0))
    mistakes[0] = _with_whole_override(mistakes[0], lines)
    first, *others = [
        lines.error(mistake.path, mistake.what, facts=mistake.facts, fix=mistake.fix) for mistake in mistakes
    ]
    for override in _overrides_below(mistakes[0], lines):
        if first.where != (where := f"--set {dotted(override)}"):
            first.facts["with"] = where
    if others:
        shown = [f"{other.where}: {other.what}" for other in others[:_MORE_SHOWN]]
        left = len(others) - len(shown)
        first.facts["also"] = "\n".join([*shown, *([f"and {left} more"] if left else [])])
    return first


def _with_whole_override(mistake: _Mistake, lines: Lines) -> _Mistake:
    """For a misspelt key in an override, the fix is the whole corrected override, ready to copy."""
    path, override = lines.keys(mistake.path), lines.override(mistake.path)
    if mistake.kind != "extra_forbidden" or not mistake.near or override is None or override[: len(path)] != path:
        return mistake
    corrected = dotted((*path[:-1], mistake.near, *override[len(path) :]))
    return replace(mistake, fix=f"--set {shlex.quote(f'{corrected}={lines.values[override]}')}")


def _overrides_below(mistake: _Mistake, lines: Lines) -> list[KeyPath]:
    """Overrides beside a missing key or inside an invalid value: they may be the cause."""
    path = lines.keys(mistake.path)
    if mistake.kind == "missing" and len(path) > 1:
        path = path[:-1]
    return [override for override in lines.overrides if len(override) > len(path) and override[: len(path)] == path]


def _mistake(details: ErrorDetails, cls: type[BaseModel], data: Any) -> _Mistake:
    kind, path, value = details["type"], _path(details, data), details["input"]
    context: Mapping[str, Any] = details.get("ctx") or {}
    if kind == "extra_forbidden":
        return _unknown_key(path, cls, data)
    if kind == "missing":
        return _Mistake(path, "is required and not given", {}, f"add {path[-1]}: ...", kind)
    if kind in ("literal_error", "enum"):
        expected = _quoted(str(context["expected"]))
        if expected and isinstance(value, str):
            mistake = _not_one_of(path, value, expected, kind)
            mistake.needs = f"be {expected[0]}" if len(expected) == 1 else f"be one of {', '.join(expected)}"
            mistake.value = value
            return mistake
    if kind == "value_error":
        return _raised(path, context.get("error"), details["msg"])
    if kind == "string_type" and isinstance(value, (int, float)):
        return _Mistake(path, f"must be text, not {_shown(value)}", {}, f'in quotes: "{_shown(value)}"', kind)
    message = _plain_words(details["msg"])
    if not message.startswith("must "):
        return _Mistake(path, message, kind=kind)
    needs = message.removeprefix("must ")
    return _Mistake(path, f"{message}, not {_shown(value)}", kind=kind, needs=needs, value=value)


def _path(details: ErrorDetails, data: Any) -> KeyPath:
    """Pydantic's loc without the elements that are not in the file: names of types and functions."""
    loc = details["loc"]
    path: list[Key] = []
    for key in loc[:-1] if details["type"] == "missing" else loc:
        if (below := _child(data, key)) is not _ABSENT:
            path.append(key)
            data = below
    return (*path, *(loc[-1:] if details["type"] == "missing" else ()))


def _child(value: Any, key: Key) -> Any:
    if isinstance(value, dict):
        return value.get(key, _ABSENT)
    if isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
        return value[key]
    return _ABSENT


def _raised(path: KeyPath, error: object, message: str) -> _Mistake:
    """A validator's error. A MechstudyError's ``where`` names a field below the one that was checked."""
    if isinstance(error, MechstudyError):
        below: tuple[Key, ...] = ()
        if error.where:
            below = tuple(int(part) if part.isdecimal() else part for part in error.where.split("."))
        return _Mistake((*path, *below), error.what, dict(error.facts), error.fix, "value_error")
    return _Mistake(path, str(error) if error is not None else message, kind="value_error")


_WORDS = (  # pydantic's words -> YAML's words
    (r", (unable to|got a number|too large|too small).*$", ""),
    (r"^Input should ", "must "),
    (r"a valid (dictionary|mapping).*$", "a mapping of keys to values"),
    (r"a valid (list|tuple|array|set)\b", "a list"),
    (r"a valid string", "text"),
    (r"a valid boolean", "true or false"),
    (r"a valid integer", "an integer"),
    (r"a valid number", "a number"),
)


def _plain_words(message: str) -> str:
    """``Input should be a valid integer, unable to parse ...`` -> ``must be an integer``."""
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    return message[:1].lower() + message[1:]


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if len(repr(value)) > 40 else repr(list(value))
    if isinstance(value, dict):
        return "a mapping of keys to values"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _not_one_of(path: KeyPath, value: str, valid: list[str], kind: str) -> _Mistake:
    close = nearest(value, valid)
    fix = f"{path[-1]}: {close}" if close and isinstance(path[-1], str) else close
    return _Mistake(path, f"{value!r} is not one of {', '.join(valid)}", {}, fix, kind)


def _unknown_key(path: KeyPath, cls: type[BaseModel], data: Any) -> _Mistake:
    for key in path[:-1]:
        fields = _fields(cls)
        if key in fields:  # otherwise a position in a list, or a key of a mapping
            cls = next(_models_in(fields[str(key)].annotation), cls)
        data = _child(data, key)
    valid = list(_fields(cls))
    close = nearest(str(path[-1]), [name for name in valid if name not in data]) or nearest(str(path[-1]), valid)
    facts = {} if close else {"valid": ", ".join(valid)}
    fix = close if close else f"remove {path[-1]}"
    return _Mistake(path, "unknown key", facts, fix, "extra_forbidden", near=close)


def _fields(cls: type[BaseModel]) -> dict[str, FieldInfo]:
    """A model's fields by the names they have in a file."""
    return {field.alias or name: field for name, field in cls.model_fields.items()}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The model that an annotation mentions: ``Model | None``, ``tuple[Model, ...]``, ``Mapping[str, Model]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _quoted(text: str) -> list[str]:
    """The values in pydantic's ``'a', 'b' or 'c'``."""
    return [first or second for first, second in re.findall(r"'((?:[^'\\]|\\.)*)'|\"([^\"]*)\"", text)]


def _merged(mistakes: list[_Mistake]) -> list[_Mistake]:
    """One mistake for each key: a union has one error for each of its members."""
    by_path: dict[KeyPath, _Mistake] = {}
    for mistake in mistakes:
        first = by_path.setdefault(mistake.path, mistake)
        if first is mistake or first.what == mistake.what:
            continue
        if first.needs and mistake.needs:
            if mistake.needs not in first.needs:
                first.needs = f"{first.needs} or {mistake.needs.removeprefix('be ')}"
            first.what = f"must {first.needs}, not {_shown(first.value)}"
            first.fix = first.fix or mistake.fix
        elif mistake.kind == "value_error":  # a validator's message is more specific than a type's
            by_path[mistake.path] = mistake
    return list(by_path.values())


def _without_echoes(mistakes: list[_Mistake]) -> list[_Mistake]:
    """Drops "a key is missing" where an unknown key beside it is that key misspelt."""
    meant = {(*m.path[:-1], m.near) for m in mistakes if m.kind == "extra_forbidden" and m.near}
    return [m for m in mistakes if not (m.kind == "missing" and m.path in meant)]
