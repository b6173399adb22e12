"""The type checker behind jaxtyping's shapes: installed by tests/conftest.py, in tests only."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def typechecked(function):
    """Functions inside functions are left alone: they would be analysed again at every call of the outer one."""
    return function if "<locals>" in function.__qualname__ else _checked(function)


PACKAGES = (
    "mechstudy.activations",
    "mechstudy.circuits",
    "mechstudy.dictionaries.crosscoder",
    "mechstudy.dictionaries.evaluation",
    "mechstudy.features",
    "mechstudy.interventions",
    "mechstudy.models",
    "mechstudy.referee",
    "mechstudy.statistics",
)
