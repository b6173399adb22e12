"""Batch sizes that worked, kept beside a run's artifacts, so that the next unit of a kind need not find them again.

``<run>/batches/<phase>-<key>.json``, one file for each kind of unit, model and device: jobs of an array may write
theirs at once. Telemetry: never in an artifact, never part of an id, and free to be deleted.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import canonical_json, read_json, write_json_atomic
from mechstudy.machine.memory import memory_limit_bytes
from mechstudy.store.manifest import slug

if TYPE_CHECKING:
    from mechstudy.runner.run_unit import Job

BATCHES = "batches"
_MODEL = "model"


def remembered(job: Job, device: str) -> int | None:
    """Tokens per batch that a unit of this kind came down to here; None where it never had to, or may try anew.

    It may where more tokens are asked for now than when it had to, and where the device or its memory is another.
    """
    with suppress(MechstudyError, KeyError, TypeError, ValueError, OSError):
        found = read_json(_file(job, device))
        tokens, asked = int(found["batch_tokens"]), int(found["asked"])
        if 0 < tokens < job.options.batch_tokens <= asked:
            return tokens
    return None


def remember(job: Job, device: str, tokens: int, asked: int) -> None:
    """Keeps what worked, where ``asked`` had not. A folder that cannot be written is no reason to fail."""
    with suppress(MechstudyError, OSError):
        key = {"unit": job.unit.entry, "model": _model(job), "device": device_kind(device)}
        write_json_atomic(_file(job, device), {**key, "batch_tokens": tokens, "asked": asked})


def device_kind(device: str) -> str:
    """The device by name and memory: what a batch has to fit into."""
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None:
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory >> 30} GiB"
    return f"{device}, {memory_limit_bytes() >> 30} GiB"


def _file(job: Job, device: str) -> Path:
    key = canonical_json([job.unit.entry, _model(job), device_kind(device)])
    return job.run / BATCHES / f"{slug(job.unit.phase)}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"


def _model(job: Job) -> str | None:
    """The id of the model that the unit runs."""
    return job.inputs[_MODEL][2] if _MODEL in job.inputs else None
