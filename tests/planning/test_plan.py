"""Plans of toy units on made-up hardware: time, memory, disk, GPUs, refusals. No torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mechstudy.cli.plan import show_plan
from mechstudy.core.progress import NullProgress
from mechstudy.core.work import Estimate, Held, Work
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.planning import disk as disks
from mechstudy.planning.calibration import Calibration, Fit
from mechstudy.planning.cost_model import timetable
from mechstudy.planning.fit import refusal, refusals
from mechstudy.planning.hardware import Hardware, Share
from mechstudy.planning.plan import Plan, make_plan
from mechstudy.runner.run import Run
from mechstudy.store.artifacts import ArtifactStore
from mechstudy.study.dag import Evaluation, Graph
from mechstudy.study.run_folder import ARTIFACTS
from mechstudy.study.slurm_config import SlurmConfig
from tests.support.toy_units import chain, unit

GB = 10**9
ROOT = Path(__file__).parents[2]
CPU = Hardware(
    name="toy", device="cpu", memory_bytes=64 * GB, flops={"float32": 2e9}, memory_bandwidth=1e9, unit_seconds=0,
    startup_seconds=0, shares={"forward": Share(share=0.5), "train": Share(share=0.25), "stream": Share(share=0.5)},
    source="made up",
)  # fmt: skip
GPU = CPU.model_copy(
    update={
        "device": "cuda", "memory_bytes": 40 * GB, "source": "profile", "startup_seconds": 10.0, "su_per_gpu_hour": 2.0,
        "price_per_su": 1.5, "flops": {"float32": 2e9, "bfloat16": 8e9}, "reserved_bytes": GB,
    }
)  # fmt: skip


def engine(folder: Path, units, **options) -> Run:
    return Run(folder, units, RunOptions(**options), NullProgress())


def planned(
    folder: Path, units, hardware: Hardware = CPU, calibration=None, slurm=None, apart=False, **options
) -> Plan:
    evaluation = Evaluation(Graph(units), ArtifactStore(folder / ARTIFACTS))
    return make_plan(
        evaluation,
        folder,
        RunOptions(**options),
        hardware=hardware,
        calibration=calibration,
        slurm=slurm,
        apart=apart,
    )


def states(folder: Path) -> dict[str, str]:
    return {row.unit: row.state for row in planned(folder, chain()).rows}


def test_a_plan_says_what_runs_at_once_what_waits_and_what_is_done(tmp_path):
    waiting = {"left": "waits", "right": "waits", "join": "waits", "report": "waits"}
    assert states(tmp_path) == {"model": "runs", **waiting}
    engine(tmp_path, chain()).execute(["right"])
    assert states(tmp_path)["left"] == "runs"
    assert states(tmp_path)["right"] == "done"
    assert not (tmp_path / "artifacts" / "left").exists(), "a plan runs nothing"


# ------------------------------------------------------------------------------------------------ time


def test_seconds_are_flops_over_rate_and_bytes_over_bandwidth(tmp_path):
    work = (Work("forward", 5e9), Work("train", 1e9), Work("stream", 1e9), Work("write", 1e9))
    hardware = CPU.model_copy(update={"disk_write": 0.5e9})
    [row] = planned(tmp_path, [unit("train[0]", estimate=Estimate(flops=6e9, work=work))], hardware).rows
    assert row.seconds == pytest.approx(5 + 2 + 2 + 2)


def test_auto_is_bfloat16_where_faster_and_every_launch_costs(tmp_path):
    hardware = GPU.model_copy(update={"call_seconds": 0.01, "startup_seconds": 0.0})
    work = (Work("forward", 8e9, "auto", calls=100),)
    [row] = planned(tmp_path, [unit("a", estimate=Estimate(work=work))], hardware).rows
    assert row.seconds == pytest.approx(8e9 / (8e9 * 0.5) + 1)


def test_narrow_products_are_slower_by_the_half_width():
    hardware = CPU.model_copy(update={"half_width": 256.0})
    assert hardware.rate("forward", "float32", 256) == pytest.approx(0.5e9)
    assert hardware.rate("forward", "float32", 2816) == pytest.approx(1e9 * 2816 / 3072)


def test_rates_between_measured_widths_lie_between_them():
    measured = {"float32": {"512": 1e9, "2048": 3e9}}
    hardware = CPU.model_copy(update={"measured": measured, "shares": {}})
    rates = [hardware.rate("forward", "float32", width) / 0.4 for width in (64, 512, 1024, 2048, 9999)]
    assert rates == pytest.approx([1e9, 1e9, 2e9, 3e9, 3e9])


def test_a_model_is_loaded_once_in_one_process_and_by_every_job_elsewhere(tmp_path):
    estimate = Estimate(holds=(Held("model", 10**9),), work=(Work("load", 4e9),))
    units = [unit(f"train[{i}]", estimate=estimate) for i in range(3)]
    here = CPU.model_copy(update={"disk_read": 1e9})
    assert [row.seconds for row in planned(tmp_path, units, here).rows] == [4, 0, 0]
    cluster = GPU.model_copy(update={"disk_read": 1e9})
    assert [row.seconds for row in planned(tmp_path, units, cluster).rows] == [14, 14, 14]


def test_totals_are_per_phase_and_count_only_what_is_to_run(tmp_path):
    units = [unit(f"train[{i}]", estimate=Estimate(100 + i, 7 - i, 1e9)) for i in range(3)]
    engine(tmp_path, units).execute(["train[0]"])
    train = planned(tmp_path, units).phases()["train"]
    assert (train.units, train.to_run, train.flops, train.seconds) == (3, 2, 2e9, 2.0)
    assert train.memory.peak == 7


def test_gpu_hours_service_units_and_price(tmp_path):
    units = [unit(f"train[{i}]", estimate=Estimate(flops=3.59e12)) for i in range(2)]  # an hour with its start
    total = planned(tmp_path, units, GPU).total
    assert total.gpu_hours == pytest.approx(2.0)
    assert (total.service_units, total.price) == pytest.approx((4.0, 6.0))
    assert planned(tmp_path, units).total.gpu_hours == 0, "a CPU has none"


def test_jobs_take_the_critical_path_and_a_cap_makes_them_queue(tmp_path):
    units = [unit("model", estimate=Estimate(flops=1e9))]
    units += [unit(f"train[{i}]", ["model"], estimate=Estimate(flops=4e9)) for i in range(4)]
    units += [unit("report", [f"train[{i}]" for i in range(4)], estimate=Estimate(flops=2e9))]
    cluster = GPU.model_copy(update={"startup_seconds": 0.0})
    free = planned(tmp_path, units, cluster)
    assert (free.seconds, free.table.seconds, free.table.most) == (19, 7, 4)
    capped = planned(tmp_path, units, cluster, slurm=SlurmConfig(concurrent=2))
    assert (capped.table.seconds, capped.table.most) == (11, 2)
    assert planned(tmp_path, units, max_parallel=3).table.seconds == 11


def test_a_timetable_starts_a_unit_when_a_place_is_free():
    table = timetable({"a": 3.0, "b": 1.0, "c": 1.0}, {}, 2)
    assert (table.seconds, table.most) == (3.0, 2)


def test_calibration_replaces_the_guess_and_narrows_the_interval(tmp_path):
    units = [unit(f"train[{i}]", estimate=Estimate(bytes_in_memory=50, flops=5e9)) for i in range(2)]
    guess = planned(tmp_path, units)
    assert (guess.seconds, guess.interval) == (10.0, (0.0, 20.0))
    fit = Fit(factor=2.0, fixed=1.0, once=3.0, spread=0.1, extra_bytes=7, n=3)
    plan = planned(tmp_path, units, calibration=Calibration({"train": fit}))
    assert [row.seconds for row in plan.rows] == [14.0, 11.0], "paid once by the first"
    assert plan.interval == pytest.approx((22.5, 27.5))
    assert plan.memory_needed == 57


# ----------------------------------------------------------------------------------------------- memory


def test_memory_is_that_of_the_largest_units_that_run_at_once(tmp_path):
    units = [unit(f"train[{i}]", estimate=Estimate(bytes_in_memory=100 * (i + 1))) for i in range(3)]
    assert planned(tmp_path, units).memory_needed == 300
    assert planned(tmp_path, units, max_parallel=2).memory_needed == 500


def test_one_process_keeps_the_model_in_each_precision_it_was_loaded_in(tmp_path):
    f32 = Estimate(bytes_in_memory=400 + 11, holds=(Held("model", 100),))
    f16 = Estimate(bytes_in_memory=400 + 23, holds=(Held("model", 100, "bfloat16"),))
    units = [unit("model", estimate=f32), unit("train[0]", ["model"], estimate=f16)]
    together = [row.memory.peak for row in planned(tmp_path, units).rows]
    assert together == [400 + 200, 400 + 200 + (423 - 200)], "the first converts its file of 200 bytes"
    train = planned(tmp_path, units, GPU).rows[1].memory
    alone = GB + 200 + 223
    assert (train.peak, train.float32, train.bfloat16) == (alone, alone + 200, alone)


def test_a_cpu_maps_a_published_file_and_reads_only_the_blocks_it_needs(tmp_path):
    held = Held("model", 100, "bfloat16", touched=60)
    units = [unit("capture[a]", estimate=Estimate(bytes_in_memory=200, holds=(held,)))]
    assert planned(tmp_path, units, max_parallel=2).rows[0].memory.peak == 120
    assert planned(tmp_path, units, GPU).rows[0].memory.peak == GB + 200
    whole = unit("baseline[a]", estimate=Estimate(bytes_in_memory=200, holds=(replace(held, touched=None),)))
    assert [row.memory.peak for row in planned(tmp_path, [whole, *units]).rows] == [200, 200], (
        "all of it was read before"
    )


def test_a_cpu_has_the_file_in_memory_while_it_converts_a_model_once(tmp_path):
    held = Held("model", 100, "bfloat16", touched=60, stored="float32")
    units = [unit(f"capture[{i}]", estimate=Estimate(bytes_in_memory=230, holds=(held,))) for i in range(2)]
    memory = [row.memory for row in planned(tmp_path, units).rows]
    assert [m.peak for m in memory] == [200 + 400, 200 + 30]
    assert [m.least for m in memory] == [200 + 30, 200 + 30], "a mapped file is given back"
    assert planned(tmp_path, units, GPU).rows[0].memory.peak == GB + 200 + 30


def test_each_process_that_shares_a_unit_has_its_own_model_and_keeps_it(tmp_path):
    cpu = CPU.model_copy(update={"reserved_bytes": 1000})
    f32 = Estimate(bytes_in_memory=400 + 11, holds=(Held("model", 100, stored="float32"),))
    units = [unit("model", entry="payload", estimate=f32), unit("capture[a]", ["model"], shared="digest", estimate=f32)]
    units += [unit("report", ["capture[a]"], entry="payload", estimate=Estimate())]
    alone, shared, after = (row.memory.peak for row in planned(tmp_path, units, cpu, world_size=3).rows)
    assert (alone, shared, after) == (1411, 3 * 1411, 3 * 1400)
    jobs = planned(tmp_path, units, cpu, world_size=3, apart=True)
    assert [row.memory.peak for row in jobs.rows] == [1411, 3 * 1411, 1000]
    assert planned(tmp_path, units, GPU, world_size=3).rows[1].memory.peak == GB + 411, "a GPU each"


def test_an_estimate_survives_json():
    estimate = Estimate(1, 2, holds=(Held("model", 3),), work=(Work("train", 4.0),))
    assert Estimate(**json.loads(json.dumps(asdict(estimate)))) == estimate


# ------------------------------------------------------------------------------------------------- disk


def captures(retention: str) -> list:
    """Two passes of a capture of 1,000 bytes and a dictionary of 10 trained on it."""
    units = []
    for i in range(2):
        options = {"retention": retention, "usual_retention": "discard", "payload": ("*.bin",)}
        units.append(unit(f"capture[{i}]", entry="payload", estimate=Estimate(1000), **options))
        units.append(unit(f"train[{i}]", [f"capture[{i}]"], estimate=Estimate(10)))
    return units


def test_the_disks_fullest_moment_is_counted_with_and_without_discarding(tmp_path):
    for retention, needed in (("discard", 1020), ("keep", 2020)):
        disk = planned(tmp_path, captures(retention)).disk
        assert (disk.needed, disk.needed_keeping, disk.needed_discarding) == (needed, 2020, 1020)


def test_what_is_kept_and_what_stays_when_rows_are_discarded(tmp_path):
    payload = {"train/x.bin": 900, "train/store.json": 50}
    capture = {"payload": ("*.bin",), "usual_retention": "discard"}
    units = [unit("capture[0]", estimate=Estimate(1000, payload=payload), **capture)]
    capture = planned(tmp_path, units).phases()["capture"]
    assert (capture.bytes_on_disk, capture.bytes_kept) == (1000, 100)


def test_a_disk_too_small_is_refused_with_the_shortage_and_a_fix(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "SPARE", 0)
    monkeypatch.setattr(disks, "free_bytes", lambda folder: 1500)
    refused = refusal(planned(tmp_path, captures("keep")))
    assert refused is not None
    assert "too small for this study by 520 B" in str(refused)
    assert "storage.retain.capture: discard (needs 1.02 kB)" in str(refused)
    assert refusal(planned(tmp_path, captures("discard"))) is None


def test_a_quota_is_a_limit_where_the_disk_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "free_bytes", lambda folder: 10**15)
    refused = refusal(planned(tmp_path, captures("keep"), quota=1500))
    assert refused is not None and refused.facts["quota"] == "1.5 kB left of storage.quota"
    assert "storage.quota is too small for this study by 520 B" in str(refused)
    assert "dictionaries.store_dtype: int8" in str(refused)
    assert refusal(planned(tmp_path, captures("keep"), quota=2020)) is None


def test_the_shortage_is_that_of_the_limit_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "free_bytes", lambda folder: disks.SPARE + 1020)
    by_disk = refusal(planned(tmp_path, captures("keep"), quota=1500))
    assert by_disk is not None and by_disk.what == "the disk is too small for this study by 1 kB"
    assert by_disk.facts["needed"] == "2.02 kB at the fullest moment, and 268 MB to spare"
    by_quota = refusal(planned(tmp_path, captures("keep"), quota=20))
    assert by_quota is not None and by_quota.what == "storage.quota is too small for this study by 2 kB"
    assert by_quota.facts == {
        "needed": "2.02 kB at the fullest moment", "quota": "20 B left of storage.quota", "largest": "capture[0], 1 kB"
    }  # fmt: skip


def test_this_disk_does_not_limit_a_study_of_another_machine(tmp_path, monkeypatch):
    assert disks.nearest_folder(tmp_path / "a" / "b") == tmp_path
    monkeypatch.setattr(disks, "free_bytes", lambda folder: 10)
    there = planned(tmp_path, captures("keep"), GPU)
    assert refusals(there, disk_here=False) == []
    assert [error.what for error in refusals(there)] == ["the disk is too small for this study by 268 MB"]
    [error] = refusals(planned(tmp_path, captures("keep"), GPU, quota=20), disk_here=False)
    assert "storage.quota is too small" in error.what


# --------------------------------------------------------------------------------------------- refusals


def test_every_refusal_is_listed_the_machines_first(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "free_bytes", lambda folder: 10)
    units = [unit("train[0]", estimate=Estimate(100, bytes_in_memory=50 * GB, flops=7.2e12))]
    found = refusals(planned(tmp_path, units, GPU), slurm=SlurmConfig(time="01:00:00", max_restarts=0))
    assert [error.what.split(" ")[:3] for error in found] == [
        ["the", "memory", "of"], ["the", "disk", "is"], ["train[0]", "takes", "about"]
    ]  # fmt: skip
    assert refusal(planned(tmp_path, units, GPU)).what == found[0].what  # type: ignore[union-attr]


def test_another_computer_without_a_gpu_has_its_own_memory(tmp_path):
    other = CPU.model_copy(update={"source": "profile", "memory_bytes": 2 * GB})
    refused = refusal(planned(tmp_path, [unit("train[0]", estimate=Estimate(bytes_in_memory=3 * GB))], other))
    assert refused is not None and refused.facts["has"] == "2 GB"


def test_a_gpu_too_small_is_refused_with_one_that_is_large_enough(tmp_path):
    units = [unit("train[0]", estimate=Estimate(bytes_in_memory=50 * GB))]
    refused = refusal(planned(tmp_path, units, GPU))
    assert refused is not None
    assert "the memory of toy is too small for this study by 11 GB" in str(refused)
    assert refused.facts["needed"] == "train[0] needs 51 GB"
    assert "--hardware a100-80gb" in (refused.fix or "")
    assert refusal(planned(tmp_path, units, GPU.model_copy(update={"memory_bytes": 60 * GB}))) is None


def test_a_time_limit_that_all_restarts_together_do_not_reach_is_refused(tmp_path):
    units = [unit("train[0]", resumes=True, estimate=Estimate(flops=7.2e12))]  # two hours
    slurm = SlurmConfig(time="01:00:00", max_restarts=0)
    refused = refusal(planned(tmp_path, units, GPU), slurm=slurm)
    assert refused is not None and "train[0] takes about 2h" in str(refused)
    assert "time: 02:40:00" in str(refused)
    assert refusal(planned(tmp_path, units, GPU), slurm=SlurmConfig(time="01:00:00", max_restarts=2)) is None
    assert refusal(planned(tmp_path, units, GPU), slurm=SlurmConfig(time="03:00:00", max_restarts=0)) is None


def test_a_unit_that_cannot_resume_must_end_within_one_job(tmp_path):
    units = [unit("features[b]", estimate=Estimate(flops=7.2e12))]  # two hours
    slurm = SlurmConfig(time="01:00:00", max_restarts=20)
    refused = refusal(planned(tmp_path, units, GPU), slurm=slurm)
    assert refused is not None and refused.facts["limit"] == "1h00m, of which the last 5m00s are for saving"
    assert refused.facts["jobs"] == "one: it starts again when it is requeued"
    assert refused.fix == "time: 02:40:00"


def test_a_job_that_asks_for_too_little_memory_is_refused(tmp_path):
    units = [unit("train[0]", estimate=Estimate(bytes_in_memory=3 * GB))]
    slurm = SlurmConfig.model_validate({"memory": "8G", "phases": {"train": {"memory": "2G"}}})
    refused = refusal(planned(tmp_path, units), slurm=slurm)
    assert refused is not None and refused.where == "compute.slurm.phases.train.memory"
    assert refused.fix == "memory: 4G"
    assert refusal(planned(tmp_path, units), slurm=SlurmConfig(memory="4G")) is None


def test_a_plan_is_plain_json(tmp_path):
    made = json.loads(json.dumps(planned(tmp_path, chain()).as_json()))
    assert made["units"][0]["unit"] == "model"
    assert made["total"]["units"] == 5


def test_36_layers_of_a_model_not_fetched_are_planned_in_two_seconds(tmp_path):
    """CPU seconds of a process of its own, start-up included, so that a busy machine does not count."""
    words = ["plan", str(ROOT / "examples" / "specification.yaml"), "--hardware", "a100-40gb", "--out", str(tmp_path)]
    words += ["--set", "dictionaries.layers=all", "--set", "dictionaries.layers_per_pass=1", "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "mechstudy", *words], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    made = json.loads(done.stdout)
    assert made["phases"]["train"]["units"] == 36
    assert made["units"][0]["shapes"]["parameters"] == "3,085,938,688"
    assert made["total"]["gpu_hours"] > 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_a_plan_of_what_is_done_says_that_nothing_is_left(tmp_path, capsys):
    engine(tmp_path, chain()).execute()
    show_plan(planned(tmp_path, chain()))
    assert "nothing is left to run" in capsys.readouterr().out
