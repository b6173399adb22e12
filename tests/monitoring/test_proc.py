"""The kernel's counters: the same as psutil's, of children too, of ended ones as well; nothing stays open; dear looks
are rare."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mechstudy.monitoring.probe import Probe
from mechstudy.monitoring.proc import MachineFiles, OneProcess, ProcessTree, descendants
from mechstudy.monitoring.sampler import monitored, pause

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")

SLEEPER = "import sys; print('up', flush=True); held = bytearray(40_000_000); print('up', flush=True); sys.stdin.read()"


def sleeper() -> subprocess.Popen[str]:
    code = [sys.executable, "-c", SLEEPER]
    process = subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline(), process.stdout.readline()
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("", timeout=20)


def test_a_process_is_as_psutil_says() -> None:
    sleeping = sleeper()
    try:
        used, other = OneProcess(sleeping.pid).used(), psutil.Process(sleeping.pid)
        times = other.cpu_times()
        assert used.cpu == pytest.approx(times.user + times.system, abs=0.02) and used.cpu > 0
        assert used.rss == pytest.approx(other.memory_info().rss, rel=0.02) and used.rss > 40_000_000
        assert (used.read, used.write) == (other.io_counters().read_bytes, other.io_counters().write_bytes)
    finally:
        end(sleeping)


def test_the_machine_is_as_psutil_says() -> None:
    times, memory, found = psutil.cpu_times(), psutil.virtual_memory(), MachineFiles().read()
    busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
    assert found.machine_cpu == pytest.approx(busy, rel=1e-3)
    swap = psutil.swap_memory()
    assert found.swap == swap.sin + swap.sout
    assert found.available is not None and found.available <= memory.total
    if Path("/proc/pressure/cpu").exists():
        assert found.wait_cpu is not None and found.wait_memory is not None


def test_a_tree_has_the_children_of_children_and_loses_those_that_end() -> None:
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]); p.wait()"
    now = [0.0]
    tree = ProcessTree(lambda: now[0])
    before = tree.used()
    outer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert outer.stdout is not None
        outer.stdout.readline(), outer.stdout.readline()
        assert len(descendants(os.getpid()) & {p.pid for p in psutil.Process(outer.pid).children()}) == 1
        now[0] = 1.0
        assert tree.used().rss < before.rss + 30_000_000, "children are looked for every few seconds"
        now[0] = 1e6
        assert tree.used().rss > before.rss + 45_000_000
    finally:
        end(outer)
    after = tree.used()
    assert after.rss < before.rss + 30_000_000
    assert after.cpu >= before.cpu, "what ended children used is in this process' counters"


def test_an_ended_process_is_not_mistaken_for_another() -> None:
    sleeping = sleeper()
    held = OneProcess(sleeping.pid)
    held.used()
    end(sleeping)
    with pytest.raises(OSError):
        held.used()


def test_nothing_stays_open_after_a_unit(tmp_path: Path) -> None:
    head = {"unit": "u", "phase": "p", "device": "cpu", "threads": 1}
    n = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with monitored(tmp_path / "a.usage.jsonl", **head):  # type: ignore[arg-type]
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == n
    assert [path.name for path in tmp_path.iterdir()] == ["a.usage.jsonl"]


def test_a_look_is_cheap() -> None:
    """psutil took .4 ms; opening files once takes a tenth of it. The least of many, so that a busy machine does not
    matter."""
    probe, costs = Probe(clock=lambda: 0.0), []
    for _ in range(200):
        began = time.thread_time()
        probe.read()
        costs.append(time.thread_time() - began)
    probe.close()
    assert min(costs) < 200e-6


@pytest.mark.parametrize(
    ("asked", "age", "own", "seconds"),
    [
        (1.0, 1.0, 0.0003, 1.0),  # cheap and young: as asked
        (1.0, 180.0, 0.05, 3.0),  # a long unit: a sixtieth of its age,
        (1.0, 3600.0, 0.5, 5.0),  # and never rarer than every five seconds
        (30.0, 3600.0, 0.5, 30.0),  # unless that was asked for
        (1.0, 10.0, 0.1, 40.0),  # dear: 100 ms in 10 s were 1%, in 50 s they are .2%
        (0.05, 1.0, 0.0001, 0.05),
    ],
)
def test_the_next_look_waits_for_its_share_of_the_time(asked: float, age: float, own: float, seconds: float) -> None:
    assert pause(asked, age, own) == pytest.approx(seconds)
