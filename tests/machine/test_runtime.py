"""Batches shrink when memory runs out; memory, seeds and provenance are what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.core.seeds import numpy_generator, seed_for, torch_generator
from mechstudy.machine.cgroup import memory_left, memory_limits
from mechstudy.machine.memory import available_memory_bytes, peak_rss_bytes, reset_peak_rss
from mechstudy.machine.runtime import Runtime, oom_backoff
from mechstudy.store.provenance import current_provenance, git_state, slurm_environment, without_absolute_path

OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:25] or "MemoryError")
def test_the_batch_is_halved_until_it_fits(error):
    tried = []

    def work(batch_size):
        tried.append(batch_size)
        if batch_size > 3:
            raise error
        return f"done with {batch_size}"

    progress = NullProgress()
    assert oom_backoff(work, 16, progress) == "done with 2"
    assert tried == [16, 8, 4, 2]
    assert len(progress.messages) == 3 and "batch size of 8" in progress.messages[0]


def test_memory_too_small_for_one_item_is_a_user_error():
    def work(batch_size):
        raise MemoryError

    with pytest.raises(MechstudyError, match="not enough memory, even with one item in a batch"):
        oom_backoff(work, 4, NullProgress())


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("no"), KeyboardInterrupt()])
def test_other_errors_pass_through_at_once(error):
    tried = []

    def work(batch_size):
        tried.append(batch_size)
        raise error

    with pytest.raises(type(error)):
        oom_backoff(work, 8, NullProgress())
    assert tried == [8]


def test_the_failed_batch_is_freed_before_the_next_try():
    class Big:
        alive = 0

        def __init__(self):
            Big.alive += 1

        def __del__(self):
            Big.alive -= 1

    seen = []

    def work(batch_size):
        seen.append(Big.alive)
        big = Big()
        if batch_size > 1:
            raise MemoryError
        return big

    oom_backoff(work, 4, NullProgress())
    assert seen == [0, 0, 0]


def test_runtime_info_is_json_and_holds_what_shaped_the_run():
    info = Runtime(device="cpu", threads=2, batch_tokens=64).info()
    assert json.loads(json.dumps(info)) == {
        "device": "cpu",
        "threads": 2,
        "batch_tokens": 64,
        "profile": False,
    }


def test_peak_memory_includes_freed_allocations_and_can_be_reset():
    def touch():
        np.ones(40_000_000)  # 320 MB

    before = peak_rss_bytes()
    touch()
    assert peak_rss_bytes() >= before
    peak = peak_rss_bytes()
    if reset_peak_rss():
        assert peak_rss_bytes() < peak - 200_000_000
    assert available_memory_bytes() > 0


def test_a_cgroups_limit_less_use_plus_cache_bounds_memory(tmp_path):
    group = tmp_path / "job" / "step"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (tmp_path / "job" / "memory.max").write_text("1000\n")
    (tmp_path / "job" / "memory.current").write_text("700\n")
    (tmp_path / "job" / "memory.stat").write_text("anon 1\ninactive_file 200\n")
    membership = tmp_path / "cgroup"
    membership.write_text("0::/job/step\n")
    assert memory_left(memory_limits(tmp_path, membership)) == 500
    membership.write_text("0::/other\n")
    assert memory_left(memory_limits(tmp_path, membership)) is None


def test_a_cgroup_of_version_1_is_understood(tmp_path):
    group = tmp_path / "memory" / "slurm"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("1000")
    (group / "memory.usage_in_bytes").write_text("400")
    membership = tmp_path / "cgroup"
    membership.write_text("5:cpu:/slurm\n4:hugetlb,memory:/slurm\n")
    assert memory_left(memory_limits(tmp_path, membership)) == 600


def test_seeds_are_63_bit_and_fixed_for_ever():
    assert seed_for(0, "train[layer=1]", "weights") == 5519471228170988986
    assert all(0 <= seed_for(0, "u", str(i)) < 2**63 for i in range(100))


def test_seed_parts_do_not_run_into_one_another():
    seeds = {seed_for(1, "a", "bc"), seed_for(1, "ab", "c"), seed_for(1, "a,b", "c"), seed_for(11, "a", "bc")}
    assert len(seeds) == 4


def test_generators_repeat_their_draws():
    draws = [torch.rand(4, generator=torch_generator(3, "u", "p")) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.rand(4, generator=torch_generator(3, "u", "q")))
    a, b = (numpy_generator(3, "u", "p").random(4) for _ in range(2))
    assert (a == b).all()


def test_provenance_is_json_complete_and_handed_out_as_a_copy():
    first = current_provenance()
    assert first["python"] == ".".join(map(str, sys.version_info[:3]))
    assert first["packages"]["torch"] and first["cpu"]["count"] == os.cpu_count() and first["memory_bytes"] > 0
    json.dumps(first)
    first["packages"].clear()
    assert current_provenance()["packages"]


def test_provenance_survives_a_probe_that_fails(monkeypatch):
    from mechstudy.store import provenance as module

    monkeypatch.setattr(module, "cpu", lambda: 1 / 0)
    module.fixed_provenance.cache_clear()
    found = module.current_provenance()
    module.fixed_provenance.cache_clear()
    assert found["cpu"] is None and found["python"]


def test_provenance_has_slurm_variables_but_no_secrets_or_absolute_paths(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_JWT", "secret")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", "/home/ada/study")
    found = slurm_environment()
    assert found["SLURM_JOB_ID"] == "42" and found["SLURM_SUBMIT_DIR"] == ".../study"
    assert "SLURM_JWT" not in found


def test_absolute_paths_are_cut_to_what_can_travel(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cwd = Path.cwd()
    assert without_absolute_path(f"{cwd}/runs/a.yaml") == "runs/a.yaml"
    assert without_absolute_path("/usr/bin/mechstudy") == ".../mechstudy"
    assert without_absolute_path(f"--out={cwd}/x") == "--out=x"
    assert without_absolute_path("capture.layers=1-3") == "capture.layers=1-3"


def test_git_state_is_of_the_repository_that_tracks_the_file(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    assert git_state(tmp_path / "a.py") is None  # inside a repository, but not tracked by it
    git("add", "a.py")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m")
    state = git_state(tmp_path / "a.py")
    assert state is not None and len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "a.py").write_text("2\n")
    assert git_state(tmp_path / "a.py")["dirty"] is True
