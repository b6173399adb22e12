"""Batch sizes that fitted in memory, kept beside a run's artifacts, so that later units of a kind start with them.

``<run>/batches/<phase>-<key>.json``, one file for each kind of unit, model and device. Never part of an artifact or an
id, and safe to delete.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import canonical_json, read_json, write_json_atomic
from mechstudy.machine.memory import memory_limit_bytes
from mechstudy.runner.job import Job
from mechstudy.store.manifest import slug

BATCHES = "batches"


def recalled_batch(job: Job, device: str) -> int | None:
    """Tokens per batch to which an earlier unit of this kind was reduced; None where none was.

    Also None where fewer tokens were asked for then than now, and for another device or another amount of memory.
    """
    with suppress(MechstudyError, KeyError, TypeError, ValueError, OSError):
        record = read_json(_file(job, device))
        tokens, asked = int(record["batch_tokens"]), int(record["asked"])
        if 0 < tokens < job.options.batch_tokens <= asked:
            return tokens
    return None


def remember_batch(job: Job, device: str, tokens: int, asked: int) -> None:
    """Keeps the tokens that fit where ``asked`` did not. A folder that cannot be written is no reason to fail."""
    with suppress(MechstudyError, OSError):
        key = {"unit": job.unit.phase.kind, "model": _model(job), "device": device_kind(device)}
        write_json_atomic(_file(job, device), {**key, "batch_tokens": tokens, "asked": asked})


def device_kind(device: str) -> str:
    """The device by name and memory."""
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None:
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory >> 30} GiB"
    return f"{device}, {memory_limit_bytes() >> 30} GiB"


def _file(job: Job, device: str) -> Path:
    key = canonical_json([job.unit.phase.kind, _model(job), device_kind(device)])
    return job.run / BATCHES / f"{slug(job.unit.phase.name)}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"


def _model(job: Job) -> str | None:
    """The id of the model that the unit runs."""
    source = next((item.unit for item in job.unit.inputs if item.role == "model"), None)
    return None if source is None or source not in job.inputs else job.inputs[source][2]
