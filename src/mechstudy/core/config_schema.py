"""Locations of pydantic's errors in YAML data, and the models that are valid there."""

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
    """An error with its path in the data, and the union members that pydantic tried before it.

    ``tried`` holds (path of the union's value, member's label) pairs.
    """

    details: ErrorDetails
    path: KeyPath
    tried: tuple[tuple[KeyPath, Key], ...]


def locate(errors: Sequence[ErrorDetails], data: Any) -> list[Located]:
    """Every error with its path in the data; for a union of models, only errors of the best-fitting member."""
    located = [_located(details, data) for details in errors]
    by_union: defaultdict[KeyPath, defaultdict[Key, list[Located]]] = defaultdict(lambda: defaultdict(list))
    for error in located:
        for union, label in error.tried:
            by_union[union][label].append(error)
    for union, members in by_union.items():
        if len(members) > 1 and isinstance(value_at(data, union), dict):
            fits = {label: _misfit(errors, union) for label, errors in members.items()}
            worse = {label for label, misfit in fits.items() if misfit > min(fits.values())}
            located = [error for error in located if not any((union, label) in error.tried for label in worse)]
    return located


def _misfit(errors: list[Located], union: KeyPath) -> tuple[bool, int, int]:
    """How badly a union's member fits: not a mapping at all, then keys unknown or missing, then the rest."""
    names = sum(error.details["type"] in ("missing", "extra_forbidden") for error in errors)
    return any(error.path == union for error in errors), names, len(errors)


def _located(details: ErrorDetails, data: Any) -> Located:
    """Pydantic's loc without the elements that are not in the file: union tags, type names, function names.

    A tag may be spelt like a key beside it, so every way to leave elements out is compared: the best one
    ends at the object the error is about, keeps the last element, and is the longest.
    """
    loc: tuple[Key, ...] = details["loc"]
    invalid = details["input"]
    body, last = (loc[:-1], loc[-1:]) if details["type"] == "missing" else (loc, ())
    best: tuple[bool, bool, int] = (False, False, -1)
    located = Located(details, (), ())
    for path, value, tried in _readings(body, data):
        same = value is invalid or (type(value) is type(invalid) and value == invalid)
        kept_last = not tried or tried[-1][0] != path
        score = (same, kept_last, len(path))
        if score > best:
            best, located = score, Located(details, (*path, *last), tried)
    return located


_Tried = tuple[tuple[KeyPath, Key], ...]


def _readings(
    loc: tuple[Key, ...], value: Any, path: KeyPath = (), tried: _Tried = ()
) -> Iterator[tuple[KeyPath, Any, _Tried]]:
    """(path, value, elements left out) for each reading of loc in the data."""
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
    """The keys of a model in YAML."""
    return [info.alias or name for name, info in model.model_fields.items()]


def literals(cls: type[BaseModel], data: Any, path: KeyPath, tag: str) -> list[str]:
    """The values a tag field may have, over all members of the union at a path."""
    fields = [model.model_fields[tag] for model in models_at(cls, data, path) if tag in model.model_fields]
    return list(dict.fromkeys(str(value) for field in fields for value in _literal_values(field.annotation)))


def models_at(cls: type[BaseModel], data: Any, path: KeyPath) -> list[type[BaseModel]]:
    """The models that the value at a path may be read as, except those of other tags."""
    annotations: list[Any] = [cls]
    value = data
    for key in path:
        annotations = [below for annotation in annotations for below in _annotations_below(annotation, value, key)]
        value = _child(value, key)
    models = [m for annotation in annotations for m in _members(annotation) if _is_model(m)]
    fitting = [model for model in models if _tags_fit(model, value)]
    return fitting or models


def _annotations_below(annotation: Any, value: Any, key: Key) -> list[Any]:
    below: list[Any] = []
    for member in _members(annotation):
        if _is_model(member):
            if isinstance(key, str) and key in member.model_fields and _tags_fit(member, value):
                below.append(member.model_fields[key].annotation)
            continue
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
            below.extend(arguments[1:])
        elif origin is tuple and isinstance(key, int) and Ellipsis not in arguments:
            below.extend(arguments[key : key + 1])
        elif isinstance(origin, type):
            below.extend(argument for argument in arguments if argument is not Ellipsis)
    return below


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
    """False when one of this model's literal fields shows that the value belongs to another member of a union."""
    if not isinstance(value, dict):
        return True
    tags = {name: _literal_values(info.annotation) for name, info in model.model_fields.items() if name in value}
    return all(value[name] in allowed for name, allowed in tags.items() if len(allowed) == 1)


def _literal_values(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
