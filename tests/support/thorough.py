"""Cases of a test of which `make check` runs a few, and `make test` all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet


def few(cases: Iterable[Any], n: int = 1) -> list[Any]:
    """The first ``n`` cases as they are, the others marked slow. A case of several arguments is a tuple."""
    listed = list(cases)
    return [*listed[:n], *map(_slow, listed[n:])]


def _slow(case: Any) -> ParameterSet:
    if isinstance(case, ParameterSet):
        return pytest.param(*case.values, marks=(*case.marks, pytest.mark.slow), id=case.id)
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
