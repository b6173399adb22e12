"""Choices measured once on this machine and remembered, so that every run on it makes them alike."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.core.provenance import provenance


def cache_folder() -> Path:
    """What is kept between runs, converted models first of all: ``$MECHSTUDY_CACHE``, or ``~/.cache/mechstudy``."""
    return Path(os.environ.get("MECHSTUDY_CACHE") or Path.home() / ".cache" / "mechstudy")


def remembered(question: str, measure: Callable[[], str]) -> str:
    """The answer kept for this machine (CPU, GPUs, torch's version), or else measured now and kept.

    Two runs of one study would otherwise choose differently where a measurement is close, and end with other bytes.
    Delete the ``choices-*.json`` of the cache folder to measure again.
    """
    file = _file()
    known: dict[str, str] = {}
    with suppress(OSError, MechstudyError):
        known = read_json(file)
    if question not in known:
        known = {**known, question: measure()}
        with suppress(OSError, MechstudyError):  # a cache that cannot be written is no reason to fail
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(file, known)
    return str(known[question])


def _file() -> Path:
    found = provenance()
    machine = repr((found["cpu"], found["nvidia_smi"], version("torch")))
    return cache_folder() / f"choices-{hashlib.sha256(machine.encode()).hexdigest()[:12]}.json"
