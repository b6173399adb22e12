"""Warnings of calls in Python, and counted nouns."""

from __future__ import annotations

import sys
import warnings


class MechstudyWarning(UserWarning):
    """What is most likely not meant, and can be computed all the same."""


def warn(text: str, category: type[Warning] = MechstudyWarning) -> None:
    """A warning at the line that called this package."""
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("mechstudy."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(text, category, stacklevel=depth)


def counted(n: int, noun: str) -> str:
    """``1 check``, ``2 checks``."""
    return f"{n:,} {noun}" + "s" * (n != 1)
