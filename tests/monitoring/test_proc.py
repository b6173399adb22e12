"""Counters of processes and the machine: equal to the kernel's, children included; nothing stays open."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mechstudy.monitoring.proc import MachineCounters, OneProcess, ProcessTree
from mechstudy.monitoring.record import Session
from mechstudy.monitoring.sampler import Probe, monitored, pause

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


@pytest.mark.process
def test_counters_of_a_process_are_the_kernels() -> None:
    sleeping = sleeper()
    try:
        used, proc = OneProcess(psutil.Process(sleeping.pid)).used(), Path(f"/proc/{sleeping.pid}")
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        ticks = sum(int(fields[i]) for i in (11, 12, 13, 14))
        assert used.cpu == pytest.approx(ticks / os.sysconf("SC_CLK_TCK"), abs=0.02) and used.cpu > 0
        resident = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        assert used.rss == pytest.approx(resident, rel=0.02) and used.rss > 40_000_000
        disk = dict(line.split(": ") for line in (proc / "io").read_text().splitlines())
        assert (used.read, used.write) == (int(disk["read_bytes"]), int(disk["write_bytes"]))
    finally:
        end(sleeping)


def test_counters_of_the_machine_are_psutils() -> None:
    counters = MachineCounters()
    times, memory, machine = psutil.cpu_times(), psutil.virtual_memory(), counters.read()
    counters.close()
    busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
    assert machine.machine_cpu == pytest.approx(busy, rel=1e-3)
    swap = psutil.swap_memory()
    assert machine.swap == swap.sin + swap.sout
    assert machine.available is not None and machine.available <= memory.total
    if Path("/proc/pressure/cpu").exists():
        assert machine.wait_cpu is not None and machine.wait_memory is not None


def test_throttled_time_is_that_of_the_cgroup(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "cpu.stat").write_text("nr_throttled 3\nthrottled_usec 2500000\n")
    (tmp_path / "membership").write_text("0::/job\n")
    counters = MachineCounters(tmp_path, tmp_path / "membership")
    assert counters.read().throttled == 2.5
    counters.close()


@pytest.mark.process
def test_a_tree_has_the_children_of_children_and_loses_those_that_end() -> None:
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]); p.wait()"
    now = [0.0]
    tree = ProcessTree(lambda: now[0])
    before = tree.used()
    outer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert outer.stdout is not None
        outer.stdout.readline(), outer.stdout.readline()
        assert len(psutil.Process(outer.pid).children()) == 1
        now[0] = 1.0
        assert tree.used().rss < before.rss + 30_000_000, "children are searched for every few seconds"
        now[0] = 1e6
        assert tree.used().rss > before.rss + 45_000_000
    finally:
        end(outer)
    after = tree.used()
    assert after.rss < before.rss + 30_000_000
    assert after.cpu >= before.cpu, "what ended children used is in this process' counters"


@pytest.mark.process
def test_an_ended_process_is_not_mistaken_for_another() -> None:
    sleeping = sleeper()
    process = OneProcess(psutil.Process(sleeping.pid))
    process.used()
    end(sleeping)
    with pytest.raises(OSError):
        process.used()


def test_nothing_stays_open_after_a_unit(tmp_path: Path) -> None:
    n = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with monitored(tmp_path / "a.usage.jsonl", Session("u", "p")):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == n
    assert [path.name for path in tmp_path.iterdir()] == ["a.usage.jsonl"]


def test_a_sample_is_cheap() -> None:
    """psutil takes .4 ms; open files a tenth of it. The least of many, so that a busy machine does not matter."""
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
        (1.0, 10.0, 0.1, 40.0),  # expensive: 100 ms are 1% of 10 s, and .2% of 50 s
        (0.05, 1.0, 0.0001, 0.05),
    ],
)
def test_the_next_sample_waits_for_its_share_of_the_time(asked: float, age: float, own: float, seconds: float) -> None:
    assert pause(asked, age, own) == pytest.approx(seconds)
