"""The cache folder, and the choices and measurements kept in it for this machine."""

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
from mechstudy.machine.hardware import cpu, nvidia_smi


def cache_folder() -> Path:
    """Holds what is kept between runs, mostly converted models: ``$MECHSTUDY_CACHE`` or ``~/.cache/mechstudy``."""
    return Path(os.environ.get("MECHSTUDY_CACHE") or Path.home() / ".cache" / "mechstudy")


def machine_id() -> str:
    """Twelve hex digits that identify this CPU, its GPUs and torch's version."""
    machine = repr((cpu(), nvidia_smi(), version("torch")))
    return hashlib.sha256(machine.encode()).hexdigest()[:12]


def remembered(question: str, measure: Callable[[], str]) -> str:
    """The choice kept for this machine (CPU, GPUs, torch's version), measured and kept at the first call.

    Two runs of one study could otherwise choose differently where a measurement is close, and write other bytes.
    Delete the ``choices-*.json`` of the cache folder to measure again.
    """
    choices = _read("choices")
    if question not in choices:
        choices = {**choices, question: measure()}
        _write("choices", choices)
    return str(choices[question])


def recall(name: str) -> dict[str, Any] | None:
    """A record of measurements kept for this machine; None where there is none."""
    record = _read("measured").get(name)
    return record if isinstance(record, dict) else None


def remember(name: str, record: dict[str, Any]) -> None:
    """Keeps a record of measurements for this machine, replacing an earlier one of this name."""
    _write("measured", {**_read("measured"), name: record})


def _read(kind: str) -> dict[str, Any]:
    with suppress(OSError, MechstudyError):
        content = read_json(_file(kind))
        if isinstance(content, dict):
            return content
    return {}


def _write(kind: str, content: dict[str, Any]) -> None:
    with suppress(OSError, MechstudyError):  # a cache that cannot be written must not fail the run
        write_json_atomic(_file(kind), content)


def _file(kind: str) -> Path:
    return cache_folder() / f"{kind}-{machine_id()}.json"
