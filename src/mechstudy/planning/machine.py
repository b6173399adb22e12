"""Rates of this machine's products, memory and disk, measured and cached; for minutes only where other work ran.

`plan` measures for a third of a second, without torch; `validate` measures with torch, in both precisions, at the
study's own widths.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mechstudy.machine.cache import recall, remember
from mechstudy.machine.cgroup import allowed_cores
from mechstudy.machine.hardware import nvidia_smi
from mechstudy.machine.memory import total_memory_bytes
from mechstudy.planning.hardware import HERE, Hardware, Share, load_hardware, profile_of_gpu

RECORD = "rates"
WIDTHS = (576, 1024, 2048)
_ROWS = 2048
SECONDS = 0.12  # a measurement of one product
BLOCK = 64 << 20  # bytes moved to measure memory and disk
# Shares of plain products that whole units reached on the machines of docs/how-to/budget.md.
_CPU_SHARES = {"forward": 0.75, "train": 0.6, "attribute": 0.3, "stream": 0.7, "sparse": 0.5}
BUSY = 0.5  # load per core above which a measurement is kept for a while only
_WHILE = 600.0  # seconds
_PROCESS_BYTES = 500_000_000  # Python, torch and transformers


def this_machine(device: str, threads: int) -> Hardware:
    """The profile of this machine's GPU, unless ``device`` is cpu or there is none; else the measured CPU.

    What is measured while other work runs is kept for ten minutes: later plans would all be as slow.
    """
    if device != "cpu" and (gpu := _gpu()) is not None:
        return gpu
    record = recall(_name(threads))
    if record is None or time.time() - record.get("busy_at", float("inf")) > _WHILE:
        record = quick(threads)
        if os.getloadavg()[0] > BUSY * allowed_cores():
            record["busy_at"] = time.time()
            record["source"] += "; other work ran here, so it is measured again in ten minutes"
        remember(_name(threads), record)
    return hardware_of(record)


def hardware_of(record: Mapping[str, Any]) -> Hardware:
    """The profile of a record of measurements."""
    measured: dict[str, dict[str, float]] = record["flops"]
    return Hardware(
        name=HERE,
        device="cpu",
        memory_bytes=total_memory_bytes(),
        reserved_bytes=_PROCESS_BYTES,
        flops={dtype: max(rates.values()) for dtype, rates in measured.items()},
        measured=measured,
        memory_bandwidth=record["memory_bandwidth"],
        shares={kind: Share(share=share, source="docs/how-to/budget.md") for kind, share in _CPU_SHARES.items()},
        call_seconds=2e-4,
        disk_read=record["disk_read"],
        disk_write=record["disk_write"],
        startup_seconds=6.0,
        su_per_gpu_hour=0.0,
        source=record["source"],
    )


def quick(threads: int) -> dict[str, Any]:
    """Measures float32 products with NumPy, and memory; the disk's rates are assumed."""
    numpy = _numpy(threads)

    a = numpy.ones((_ROWS // 2, 1024), dtype=numpy.float32)
    b = numpy.ones((1024, 1024), dtype=numpy.float32)
    rate = 2 * a.size * 1024 / _best(lambda: a @ b)
    return {
        "flops": {"float32": {"1024": rate}},
        "memory_bandwidth": _memory_bandwidth(),
        "disk_read": 1e9,
        "disk_write": 5e8,
        "source": f"{rate / 1e9:.0f} GFLOP/s float32, measured with NumPy; `mechstudy validate` measures more",
    }


def measure(folder: Path, d_model: int, d_mlp: int, threads: int) -> Hardware:
    """Measures with torch in float32 and bfloat16, and the disk of ``folder``, and caches the result."""
    import torch

    from mechstudy.models.precision import faster_dtype

    torch.set_num_threads(threads)
    flops: dict[str, dict[str, float]] = {"float32": {}, "bfloat16": {}}
    for width in sorted({*WIDTHS, d_model, d_mlp}):
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            a, b = torch.ones(_ROWS, width, dtype=dtype), torch.ones(width, 3 * width, dtype=dtype)
            out = torch.empty(_ROWS, 3 * width, dtype=dtype)
            flops[name][str(width)] = 2 * _ROWS * 3 * width * width / _best(partial(torch.mm, a, b, out=out))
    write, read = disk_rates(folder, BLOCK)
    best = {name: max(rates.values()) / 1e9 for name, rates in flops.items()}
    record = {
        "flops": flops,
        "memory_bandwidth": _memory_bandwidth(),
        "disk_read": read,
        "disk_write": write,
        "source": f"{best['float32']:.0f} GFLOP/s float32, {best['bfloat16']:.0f} bfloat16, measured with torch",
    }
    remember(_name(threads), record)
    return hardware_of(record).model_copy(update={"auto": faster_dtype(d_model, d_mlp, "cpu")})


def _name(threads: int) -> str:
    return f"{RECORD}, {threads} threads"


def _numpy(threads: int) -> Any:
    """NumPy with this many threads, which it reads when it is first imported."""
    if "numpy" in sys.modules:
        return sys.modules["numpy"]
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import numpy

    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before
    return numpy


def _gpu() -> Hardware | None:
    """The profile of the first GPU; an unknown one counts as an A100 of 40 GB."""
    if not (described := nvidia_smi()):
        return None
    if (gpu := profile_of_gpu(described)) is None:
        gpu = load_hardware("a100-40gb").model_copy(update={"name": "unknown GPU, taken for an A100-40GB"})
    return gpu.model_copy(update={"source": "the profile of this machine's GPU"})


def _best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest run."""
    work()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while (began := time.perf_counter()) < end:
        work()
        best = min(best, time.perf_counter() - began)
    return best


def _memory_bandwidth() -> float:
    """Bytes/s that a copy in memory reads and writes."""
    import numpy

    source = numpy.ones(BLOCK // 8)
    target = numpy.zeros_like(source)
    return 2 * source.nbytes / _best(lambda: numpy.copyto(target, source))


def disk_rates(folder: Path, n: int) -> tuple[float, float]:
    """Bytes/s written (synced) and read in one file of ``n`` bytes, past the page cache where the system allows."""
    file, chunk = folder / f".mechstudy-speed-{secrets.token_hex(4)}", secrets.token_bytes(min(n, 4 << 20))
    try:
        began = time.perf_counter()
        with file.open("wb", buffering=0) as out:
            for _ in range(n // len(chunk)):
                out.write(chunk)
            os.fsync(out.fileno())
        wrote = time.perf_counter() - began
        with file.open("rb", buffering=0) as opened:
            with suppress(AttributeError, OSError):
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            buffer, total = bytearray(len(chunk)), 0
            began = time.perf_counter()
            while got := opened.readinto(buffer):
                total += got
            read = time.perf_counter() - began
    finally:
        file.unlink(missing_ok=True)
    assert total == n // len(chunk) * len(chunk), f"{total} bytes came back"
    return total / max(wrote, 1e-9), total / max(read, 1e-9)
