"""Frozen configs, and YAML files loaded into them with every error at its file and line."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mechstudy.core.config_errors import describe
from mechstudy.core.errors import MechstudyError
from mechstudy.core.yaml_source import Lines, YamlSource, read_yaml

__all__ = ["Config", "Lines", "load_config", "load_config_with_lines"]

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of every config: frozen, unknown keys refused, defaults checked too.

    Invalid values raise the same MechstudyError in Python (``Config(field=...)``) and in YAML; pydantic's own
    ``model_validate`` raises its ValidationError.

    Fields must not be sets: their order changes from process to process, and with it an artifact's id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    optional: ClassVar[frozenset[str]] = frozenset()
    """Fields that are left out of the canonical form while they are None: ids from before they existed stay."""

    def __init__(self, /, **data: Any) -> None:
        __tracebackhide__ = True
        try:
            super().__init__(**data)
        except ValidationError as error:
            cls = type(self)
            described = describe(error, cls, YamlSource(_as_in_yaml(data), Lines(Path(cls.__name__))))
        else:
            return
        # Without `where`, which would name a field of the model around this one (`MechstudyError`).
        raise MechstudyError(f"{described.where}: {described.what}", facts=described.facts, fix=described.fix)

    # As in BaseModel: otherwise pydantic calls this as a custom constructor for nested models too.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            if _mentions_set(field.annotation):
                raise TypeError(f"{cls.__name__}.{name} is a set, which has no fixed order: use a tuple")

    def canonical(self) -> dict[str, Any]:
        """A JSON-able dict of every field, defaults included, tuples as lists. Ids are computed from it."""
        values: dict[str, Any] = _without_unset(self, self.model_dump(mode="json", by_alias=True))
        return values


def _without_unset(value: Any, dumped: Any) -> Any:
    """The dump of a value without the unset optional fields of the configs in it."""
    if isinstance(value, Config):
        kept = dict(dumped)
        for name, field in type(value).model_fields.items():
            key, inner = field.alias or name, getattr(value, name)
            if inner is None and key in value.optional:
                del kept[key]
            else:
                kept[key] = _without_unset(inner, dumped[key])
        return kept
    if isinstance(value, tuple | list):
        return [_without_unset(one, other) for one, other in zip(value, dumped, strict=True)]
    if isinstance(value, Mapping) and any(isinstance(one, Config) for one in value.values()):
        return {key: _without_unset(one, dumped[str(key)]) for key, one in value.items()}
    return dumped


def load_config(path: Path, cls: type[C], overrides: Sequence[str] = ()) -> C:
    """Reads a YAML 1.2 file into ``cls``.

    Args:
        path: the file.
        cls: the config to read.
        overrides: ``"capture.layers=10-12"``, ``"behaviours.0.n=5"``: the value is read as YAML.

    Raises:
        MechstudyError: an invalid value, with its file and line (or ``--set key``), what is valid there, and a fix.
    """
    return load_config_with_lines(path, cls, overrides)[0]


def load_config_with_lines(path: Path, cls: type[C], overrides: Sequence[str] = ()) -> tuple[C, Lines]:
    """As `load_config`, with the line of each field for errors that only a later step can find.

    ``lines.error("capture.layers", "layer 31 does not exist", facts=...)`` is a MechstudyError that says
    ``study.yaml:14: capture.layers: layer 31 does not exist``.
    """
    source: YamlSource = read_yaml(Path(path), overrides)
    try:
        return cls.model_validate(source.data), source.lines
    except ValidationError as error:
        raise describe(error, cls, source) from None


def _as_in_yaml(value: Any) -> Any:
    """Tuples as lists, since errors are located in YAML's types."""
    if isinstance(value, dict):
        return {key: _as_in_yaml(inner) for key, inner in value.items()}
    return [_as_in_yaml(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _mentions_set(annotation: Any) -> bool:
    if annotation in (set, frozenset) or typing.get_origin(annotation) in (set, frozenset):
        return True
    return any(_mentions_set(argument) for argument in typing.get_args(annotation))
