"""Retention: how long the payload of an artifact is kept.

``keep``: for good, and in archives. ``regenerate``: until `mechstudy clean`; archives hold only the manifest.
``discard``: the run deletes it as soon as no unit needs it any more. Manifests and small files are always kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal

Retention = Literal["keep", "regenerate", "discard"]


def payload_of(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The file names that match, sorted (``*`` also crosses folders)."""
    wanted = tuple(patterns)
    return sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted))
