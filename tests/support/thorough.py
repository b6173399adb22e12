"""Cases of a test of which `make check` runs a few, and `make test` all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], n: int = 1) -> list[Any]:
    """The first ``n`` cases as they are, the others marked slow. A case of several arguments is a tuple."""
    first, others = list(cases)[:n], list(cases)[n:]
    slow = [pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.slow) for one in others]
    return [*first, *slow]
