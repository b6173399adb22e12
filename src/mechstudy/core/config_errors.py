"""pydantic's errors told as a MechstudyError: file and line, the key, what is valid there, what to do."""

from __future__ import annotations

import itertools
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.yaml_source import Key, KeyPath, Lines, YamlSource, dotted

_ABSENT = object()
_MORE_SHOWN = 10


@dataclass
class _Mistake:
    """One thing to tell: at which key, what, and how to mend it."""

    path: KeyPath
    what: str
    facts: dict[str, str] = field(default_factory=dict)
    fix: str | None = None
    kind: str = ""


def describe(error: ValidationError, cls: type[BaseModel], source: YamlSource) -> MechstudyError:
    """The first mistake of the file as a MechstudyError; the others follow under ``also``."""
    mistakes = [_mistake(details, cls, source.data) for details in error.errors()]
    mistakes = _without_echoes(_merged(mistakes))
    lines = source.lines
    mistakes.sort(key=lambda mistake: lines.line(mistake.path))
    first, *others = [
        lines.error(mistake.path, mistake.what, facts=mistake.facts, fix=mistake.fix) for mistake in mistakes
    ]
    for given in _overrides_below(mistakes[0], lines):
        first.facts["with"] = f"--set {dotted(given)}"
    if others:
        told = [f"{other.where}: {other.what}" for other in others[:_MORE_SHOWN]]
        left = len(others) - len(told)
        first.facts["also"] = "\n".join([*told, *([f"and {left} more"] if left else [])])
    return first


def _overrides_below(mistake: _Mistake, lines: Lines) -> list[KeyPath]:
    """Overrides of parts of what is wrong as a whole: they may be the reason."""
    path = mistake.path
    return [given for given in lines.overrides if len(given) > len(path) and given[: len(path)] == path]


def _mistake(details: ErrorDetails, cls: type[BaseModel], data: Any) -> _Mistake:
    kind = details["type"]
    context: Mapping[str, Any] = details.get("ctx") or {}
    path = _path_in_data(details, data)
    given = details["input"]
    if kind == "extra_forbidden":
        return _unknown_key(path, cls, data)
    if kind == "missing":
        return _Mistake(path, "is required and not given", {}, f"add {path[-1]}: ...", kind)
    if kind == "union_tag_not_found":
        tag = str(context.get("discriminator", "kind")).strip("'")
        valid = _literals(cls, data, path, tag)
        facts = {"valid": ", ".join(valid)} if valid else {}
        fix = f"add {tag}: {valid[0] if len(valid) == 1 else '...'}"
        return _Mistake((*path, tag), "is required and not given", facts, fix, kind)
    if kind == "union_tag_invalid":
        tag = str(context["discriminator"]).strip("'")
        return _not_one_of((*path, tag), str(context["tag"]), _quoted(str(context["expected_tags"])), kind)
    if kind in ("literal_error", "enum"):
        expected = _quoted(str(context["expected"]))
        if expected and isinstance(given, str):
            return _not_one_of(path, given, expected, kind)
    if kind == "value_error":
        return _raised(path, context.get("error"), details["msg"])
    if kind == "string_type" and isinstance(given, (int, float)):
        return _Mistake(path, f"must be text, not {_shown(given)}", {}, f'in quotes: "{_shown(given)}"', kind)
    return _Mistake(path, _must_be(details["msg"], given), {}, None, kind)


def _raised(path: KeyPath, error: object, message: str) -> _Mistake:
    """What a validator raised. A MechstudyError's ``where`` names a field below the one that was checked."""
    if isinstance(error, MechstudyError):
        below: tuple[Key, ...] = ()
        if error.where:
            below = tuple(int(part) if part.isdecimal() else part for part in error.where.split("."))
        return _Mistake((*path, *below), error.what, dict(error.facts), error.fix, "value_error")
    return _Mistake(path, str(error) if error is not None else message, kind="value_error")


def _must_be(message: str, given: object) -> str:
    """``Input should be a valid integer, unable to ...`` -> ``must be a valid integer, not 'abc'``."""
    message = re.sub(r", (unable to|got a number with|too large|too small|got|exceeded).*$", "", message)
    message = message.replace("Input should ", "must ").replace(
        "valid dictionary", "mapping of keys to values"
    )
    message = re.sub(
        r"dictionary or instance of \w+|valid (dictionary|mapping)", "mapping of keys to values", message
    )
    message = message.replace("valid string", "text").replace("a valid tuple", "a list")
    message = (
        message.replace("a valid array", "a list").replace("a valid list", "a list").replace("a text", "text")
    )
    message = message[:1].lower() + message[1:]
    return f"{message}, not {_shown(given)}" if message.startswith("must ") else message


def _shown(given: object) -> str:
    if given is None:
        return "empty"
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, (list, tuple)):
        return f"a list of {len(given)}" if len(repr(given)) > 40 else repr(list(given))
    if isinstance(given, dict):
        return "a mapping of keys to values"
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _not_one_of(path: KeyPath, given: str, valid: list[str], kind: str) -> _Mistake:
    close = nearest(given, valid)
    fix = f"{path[-1]}: {close}" if close and isinstance(path[-1], str) else close
    return _Mistake(path, f"{given!r} is not one of {', '.join(valid)}", {}, fix, kind)


def _unknown_key(path: KeyPath, cls: type[BaseModel], data: Any) -> _Mistake:
    parents = _models_at(cls, data, path[:-1])
    valid = list(dict.fromkeys(itertools.chain.from_iterable(_names(parent) for parent in parents)))
    taken = _value_at(data, path[:-1])
    free = [name for name in valid if not isinstance(taken, dict) or name not in taken]
    close = nearest(str(path[-1]), free) or nearest(str(path[-1]), valid)
    facts = {} if close else {"valid": ", ".join(valid)}
    fix = close if close else f"remove {path[-1]}"
    return _Mistake(path, "unknown key", facts, fix, "extra_forbidden")


def _quoted(text: str) -> list[str]:
    """The values in pydantic's ``'a', 'b' or 'c'``."""
    return [first or second for first, second in re.findall(r"'((?:[^'\\]|\\.)*)'|\"([^\"]*)\"", text)]


def _merged(mistakes: list[_Mistake]) -> list[_Mistake]:
    """One mistake for each key: a union tells one error for each of its members."""
    by_path: dict[KeyPath, _Mistake] = {}
    for mistake in mistakes:
        known = by_path.setdefault(mistake.path, mistake)
        if known is mistake or known.what == mistake.what:
            continue
        if known.what.startswith("must ") and mistake.what.startswith("must "):
            head, separator, tail = known.what.rpartition(", not ")
            alternative = mistake.what.rpartition(", not ")[0] or mistake.what
            if separator and alternative not in head:
                known.what = f"{head}, or {alternative}{separator}{tail}"
        elif mistake.kind == "value_error":  # a validator's own words say more than a type's
            by_path[mistake.path] = mistake
    return list(by_path.values())


def _without_echoes(mistakes: list[_Mistake]) -> list[_Mistake]:
    """Without "a key is missing" where an unknown key beside it is that key misspelt."""
    meant = {(*m.path[:-1], m.fix) for m in mistakes if m.kind == "extra_forbidden" and m.fix}
    return [m for m in mistakes if not (m.kind == "missing" and m.path in meant)]


def _path_in_data(details: ErrorDetails, data: Any) -> KeyPath:
    """pydantic's loc without what is not in the file: union tags, type names, function names.

    A tag may be spelt like a key beside it, so every way to leave elements out is weighed: the best one
    ends at the very object the error is about, keeps the last element, and is the longest.
    """
    loc: tuple[Key, ...] = details["loc"]
    missing = details["type"] == "missing"
    body, last = (loc[:-1], loc[-1:]) if missing else (loc, ())
    best: tuple[tuple[bool, bool, int], KeyPath] = ((False, False, -1), ())
    for path, value, kept_last in _readings(body, data):
        same = value is details["input"] or (
            value == details["input"] and type(value) is type(details["input"])
        )
        score = (same, kept_last, len(path))
        if score > best[0]:
            best = (score, path)
    return (*best[1], *last)


def _readings(loc: tuple[Key, ...], data: Any) -> Iterator[tuple[KeyPath, Any, bool]]:
    """(path, value, whether loc's last element is in the path) for each way loc can be read in the data."""

    def walk(
        rest: tuple[Key, ...], value: Any, path: KeyPath, kept: bool
    ) -> Iterator[tuple[KeyPath, Any, bool]]:
        if not rest:
            yield path, value, kept
            return
        below = _child(value, rest[0])
        if below is not _ABSENT:
            yield from walk(rest[1:], below, (*path, rest[0]), True)
        yield from walk(rest[1:], value, path, False)

    return walk(loc, data, (), True)


def _child(value: Any, key: Key) -> Any:
    if isinstance(value, dict):
        return value.get(key, _ABSENT)
    if isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
        return value[key]
    return _ABSENT


def _value_at(data: Any, path: KeyPath) -> Any:
    for key in path:
        data = _child(data, key)
    return data


def _names(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


def _literals(cls: type[BaseModel], data: Any, path: KeyPath, tag: str) -> list[str]:
    """The values a tag field may have, over all members of the union at a path."""
    found: list[str] = []
    for model in _models_at(cls, data, path):
        if tag in model.model_fields:
            found.extend(str(value) for value in _literal_values(model.model_fields[tag].annotation))
    return list(dict.fromkeys(found))


def _models_at(cls: type[BaseModel], data: Any, path: KeyPath) -> list[type[BaseModel]]:
    """The models the value at a path may be read as, those of other tags left out."""
    annotations: list[Any] = [cls]
    value = data
    for key in path:
        annotations = [
            below for annotation in annotations for below in _annotations_below(annotation, value, key)
        ]
        value = _child(value, key)
    models = [m for annotation in annotations for m in _members(annotation) if _is_model(m)]
    fitting = [model for model in models if _tags_fit(model, value)]
    return fitting or models


def _annotations_below(annotation: Any, value: Any, key: Key) -> list[Any]:
    found: list[Any] = []
    for member in _members(annotation):
        if _is_model(member):
            if isinstance(key, str) and key in member.model_fields and _tags_fit(member, value):
                found.append(member.model_fields[key].annotation)
            continue
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
            found.extend(arguments[1:])
        elif origin is tuple and isinstance(key, int) and Ellipsis not in arguments:
            found.extend(arguments[key : key + 1])
        elif isinstance(origin, type):
            found.extend(argument for argument in arguments if argument is not Ellipsis)
    return found


def _members(annotation: Any) -> list[Any]:
    """The members of a union, ``Annotated`` and type aliases unwrapped."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin is typing.Union or origin is types.UnionType:
        return [member for argument in typing.get_args(annotation) for member in _members(argument)]
    if hasattr(annotation, "__value__"):
        return _members(annotation.__value__)
    return [annotation]


def _is_model(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)


def _tags_fit(model: type[BaseModel], value: Any) -> bool:
    """False when the value names another member of a union in one of this model's literal fields."""
    if not isinstance(value, dict):
        return True
    for name, info in model.model_fields.items():
        allowed = _literal_values(info.annotation)
        if allowed and info.is_required() is False and name not in value:
            continue
        if allowed and name in value and value[name] not in allowed and len(allowed) == 1:
            return False
    return True


def _literal_values(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
