"""Where pydantic's errors are in the file, and which models may stand there."""

from __future__ import annotations

import types
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from mechstudy.core.yaml_source import Key, KeyPath

_ABSENT = object()


@dataclass(frozen=True)
class Located:
    """An error with its path in the data, and the union members pydantic tried on the way to it.

    ``tried`` holds (path of the union's value, member's label) pairs.
    """

    details: ErrorDetails
    path: KeyPath
    tried: tuple[tuple[KeyPath, Key], ...]


def locate(errors: Sequence[ErrorDetails], data: Any) -> list[Located]:
    """Every error at its path in the data; of a union of models, only those of the best-fitting member."""
    located = [_located(details, data) for details in errors]
    by_union: defaultdict[KeyPath, defaultdict[Key, list[Located]]] = defaultdict(lambda: defaultdict(list))
    for error in located:
        for union, label in error.tried:
            by_union[union][label].append(error)
    for union, members in by_union.items():
        if len(members) > 1 and isinstance(value_at(data, union), dict):
            fits = {label: _misfit(found, union) for label, found in members.items()}
            worse = {label for label, misfit in fits.items() if misfit > min(fits.values())}
            located = [error for error in located if not any((union, label) in error.tried for label in worse)]
    return located


def _misfit(errors: list[Located], union: KeyPath) -> tuple[bool, int, int]:
    """How badly a union's member fits: no mapping at all, then keys unknown or missing, then the rest."""
    names = sum(error.details["type"] in ("missing", "extra_forbidden") for error in errors)
    return any(error.path == union for error in errors), names, len(errors)


def _located(details: ErrorDetails, data: Any) -> Located:
    """pydantic's loc without what is not in the file: union tags, type names, function names.

    A tag may be spelt like a key beside it, so every way to leave elements out is weighed: the best one
    ends at the very object the error is about, keeps the last element, and is the longest.
    """
    loc: tuple[Key, ...] = details["loc"]
    given = details["input"]
    body, last = (loc[:-1], loc[-1:]) if details["type"] == "missing" else (loc, ())
    best: tuple[bool, bool, int] = (False, False, -1)
    found = Located(details, (), ())
    for path, value, tried in _readings(body, data):
        same = value is given or (type(value) is type(given) and value == given)
        kept_last = not tried or tried[-1][0] != path
        score = (same, kept_last, len(path))
        if score > best:
            best, found = score, Located(details, (*path, *last), tried)
    return found


_Tried = tuple[tuple[KeyPath, Key], ...]


def _readings(
    loc: tuple[Key, ...], value: Any, path: KeyPath = (), tried: _Tried = ()
) -> Iterator[tuple[KeyPath, Any, _Tried]]:
    """(path, value, elements left out) for each way loc can be read in the data."""
    if not loc:
        yield path, value, tried
        return
    below = _child(value, loc[0])
    if below is not _ABSENT:
        yield from _readings(loc[1:], below, (*path, loc[0]), tried)
    yield from _readings(loc[1:], value, path, (*tried, (path, loc[0])))


def _child(value: Any, key: Key) -> Any:
    if isinstance(value, dict):
        return value.get(key, _ABSENT)
    if isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
        return value[key]
    return _ABSENT


def value_at(data: Any, path: KeyPath) -> Any:
    """The value at a path of the data (an opaque object where there is none)."""
    for key in path:
        data = _child(data, key)
    return data


def names(model: type[BaseModel]) -> list[str]:
    """The keys a model takes in YAML."""
    return [info.alias or name for name, info in model.model_fields.items()]


def literals(cls: type[BaseModel], data: Any, path: KeyPath, tag: str) -> list[str]:
    """The values a tag field may have, over all members of the union at a path."""
    found: list[str] = []
    for model in models_at(cls, data, path):
        if tag in model.model_fields:
            found.extend(str(value) for value in _literal_values(model.model_fields[tag].annotation))
    return list(dict.fromkeys(found))


def models_at(cls: type[BaseModel], data: Any, path: KeyPath) -> list[type[BaseModel]]:
    """The models the value at a path may be read as, those of other tags left out."""
    annotations: list[Any] = [cls]
    value = data
    for key in path:
        annotations = [below for annotation in annotations for below in _annotations_below(annotation, value, key)]
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
