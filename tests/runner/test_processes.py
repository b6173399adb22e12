"""Several processes share a unit: the bytes are one process', failures name the rank, and nothing is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mechstudy.core import signals as stopping
from mechstudy.core.jsonio import read_json
from mechstudy.core.progress import NullProgress
from mechstudy.core.signals import Stopped
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.runner.completion import RunResult
from mechstudy.runner.processes.leader import n_processes, world_size
from mechstudy.runner.run import Run
from tests.support.toy_ranks import items
from tests.support.toy_units import sums, unit

ROOT = Path(__file__).parents[2]


def run(folder: Path, size: int, **spec) -> RunResult:
    options = RunOptions(threads=6, world_size=size)
    return Run(folder, [items(**spec)], options, NullProgress()).execute()


def made(folder: Path) -> list[int]:
    return sorted(map(int, (folder / "made").read_text().split()))


def ranks(folder: Path) -> list[dict]:
    return [read_json(file) for file in sorted(folder.glob("rank-*.json"))]


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.process
def test_three_processes_make_the_bytes_of_one_each_item_once(tmp_path):
    assert run(tmp_path / "1", 1).exit_code == 0
    result = run(tmp_path / "3", 3)
    assert result.exit_code == 0
    assert sums(tmp_path / "3") == sums(tmp_path / "1")
    assert made(tmp_path / "3") == list(range(12))
    found = ranks(tmp_path / "3")
    assert len({rank["pid"] for rank in found}) == 3 and {rank["size"] for rank in found} == {3}
    assert [rank["threads"] for rank in found] == [2, 2, 2], "each has its part of the six"
    assert [rank["broadcast"] for rank in found[1:]] == [{"word": "hello"}] * 2
    artifact = result.unit("items").artifact
    assert artifact is not None and artifact.manifest["runtime"]["world_size"] == 3
    assert gone([rank["pid"] for rank in found[1:]]), "helpers end with the run"


@pytest.mark.process
def test_a_rank_that_is_killed_is_named_and_the_others_work_is_kept(tmp_path):
    result = run(tmp_path, 3, on=1, does="die")
    assert result.exit_code == 2
    error = result.failures[0].error
    assert error is not None and error.where == "items, rank 1 of 3" and "killed from outside" in error.what
    assert gone([rank["pid"] for rank in ranks(tmp_path)[1:]])
    before = made(tmp_path)
    assert 0 < len(before) < 12
    again = run(tmp_path, 2, on=1, does="die")  # another number of processes
    assert again.exit_code == 0 and made(tmp_path) == list(range(12)), "nothing is done twice"
    run(tmp_path / "1", 1, on=1, does="die")
    assert sums(tmp_path) == sums(tmp_path / "1")


@pytest.mark.process
def test_a_ranks_mistake_comes_to_the_leader_whole(tmp_path):
    error = run(tmp_path, 2, on=1, does="refuse").failures[0].error
    assert error is not None
    assert error.where == "toy.yaml:3 (items, rank 1 of 2)" and error.what == "the toy is broken"
    assert error.facts == {"toy": "a bear"} and error.fix == "fix it"


@pytest.mark.process
def test_a_ranks_crash_comes_with_its_traceback(tmp_path):
    result = run(tmp_path, 2, on=1, does="crash")
    failure = result.failures[0]
    assert result.exit_code == 1
    assert failure.crash == "RankFailed: rank 1 of 2: ZeroDivisionError: one over nothing"
    assert "in _do" in failure.trace, "where in the rank it was"


@pytest.mark.process
def test_a_rank_without_memory_starts_all_again_with_half_the_batch(tmp_path):
    result = run(tmp_path, 2, on=1, does="starve")
    artifact = result.unit("items").artifact
    assert artifact is not None and artifact.manifest["runtime"]["batch_tokens"] == 2048


@pytest.mark.process
def test_a_stop_reaches_every_rank_and_the_run_goes_on_from_there(tmp_path):
    spec = {"n": 6, "does": "hear", "pause": 0.4}
    with stopping.polite(), pytest.raises(Stopped, match="SIGUSR1"):
        run(tmp_path, 2, on=0, **spec)  # the leader is asked
    assert 0 < len(made(tmp_path)) < 6
    assert gone([ranks(tmp_path)[1]["pid"]])
    assert run(tmp_path, 3, on=0, **spec).exit_code == 0
    assert made(tmp_path) == list(range(6))


@pytest.mark.process
def test_a_worker_that_is_asked_to_stop_stops_them_all(tmp_path):
    with pytest.raises(Stopped, match="rank 1 was asked to stop"):
        run(tmp_path, 2, on=1, does="hear", pause=0.05)
    assert gone([ranks(tmp_path)[1]["pid"]])


@pytest.mark.process
def test_workers_die_with_a_leader_that_is_killed(tmp_path):
    command = [sys.executable, "-m", "tests.support.toy_ranks", str(tmp_path), "0.2", "2"]
    leader = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while len(ranks(tmp_path)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        pids = [rank["pid"] for rank in ranks(tmp_path)]
        assert leader.pid in pids
        os.kill(leader.pid, signal.SIGKILL)
        leader.wait(10)
        assert gone(pids)
    finally:
        leader.kill()


@pytest.mark.parametrize("nproc", [2])
@pytest.mark.process
def test_torchrun_gives_one_run_whose_first_rank_leads(tmp_path, nproc):
    port = ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(nproc), *port]
    done = subprocess.run(
        [*launch, "-m", "tests.support.toy_ranks", str(tmp_path / "run"), "0", "1"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    run(tmp_path / "1", 1, pause=0.0)
    assert made(tmp_path / "run") == list(range(12)), "nobody did the other's"
    assert len({rank["pid"] for rank in ranks(tmp_path / "run")}) == nproc
    assert list(sums(tmp_path / "run").values()) == list(sums(tmp_path / "1").values())


def test_units_that_cannot_be_shared_run_in_one_process():
    assert n_processes(unit("model"), RunOptions(world_size=4)) == 1
    assert n_processes(items(), RunOptions(world_size=4)) == 4


def test_auto_is_one_process_unless_a_job_has_several_gpus(monkeypatch):
    assert world_size("auto", "cpu", {}) == 1
    assert world_size("auto", "cpu", {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2"}) == 1, "no GPU is used"
    assert world_size(3, "cpu", {}) == 3
    monkeypatch.setattr("mechstudy.runner.processes.leader.resolve_device", lambda _: "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert world_size("auto", "auto", {"SLURM_JOB_ID": "7"}) == 4
    assert world_size("auto", "auto", {}) == 1
