"""Choices and measurements made once on this machine and remembered, so that every run on it makes them alike."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json, write_json_atomic
from mechstudy.store.provenance import cpu, nvidia_smi


def cache_folder() -> Path:
    """What is kept between runs, converted models first of all: ``$MECHSTUDY_CACHE``, or ``~/.cache/mechstudy``."""
    return Path(os.environ.get("MECHSTUDY_CACHE") or Path.home() / ".cache" / "mechstudy")


def machine_id() -> str:
    """Twelve hex digits of this CPU, its GPUs and torch's version."""
    machine = repr((cpu(), nvidia_smi(), version("torch")))
    return hashlib.sha256(machine.encode()).hexdigest()[:12]


def remembered(question: str, measure: Callable[[], str]) -> str:
    """The answer kept for this machine (CPU, GPUs, torch's version), or else measured now and kept.

    Two runs of one study would otherwise choose differently where a measurement is close, and end with other bytes.
    Delete the ``choices-*.json`` of the cache folder to measure again.
    """
    known = _read("choices")
    if question not in known:
        known = {**known, question: measure()}
        _write("choices", known)
    return str(known[question])


def recall(name: str) -> dict[str, Any] | None:
    """A record of measurements kept for this machine; None where there is none."""
    found = _read("measured").get(name)
    return found if isinstance(found, dict) else None


def remember(name: str, record: dict[str, Any]) -> None:
    """Keep a record of measurements for this machine, in place of an earlier one of this name."""
    _write("measured", {**_read("measured"), name: record})


def _read(kind: str) -> dict[str, Any]:
    with suppress(OSError, MechstudyError):
        found = read_json(_file(kind))
        if isinstance(found, dict):
            return found
    return {}


def _write(kind: str, content: dict[str, Any]) -> None:
    with suppress(OSError, MechstudyError):  # a cache that cannot be written is no reason to fail
        file = _file(kind)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(file, content)


def _file(kind: str) -> Path:
    return cache_folder() / f"{kind}-{machine_id()}.json"
