"""What was spent, from manifests and from Slurm's accounting, beside the plan."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mechstudy.cli.cost import show_cost
from mechstudy.core.progress import NullProgress
from mechstudy.core.work import Estimate
from mechstudy.machine.cache import machine_id
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.planning.hardware import Hardware
from mechstudy.runner import cost as costs
from mechstudy.runner.cost import cost_of
from mechstudy.runner.measured_cost import Attempts, attempts_of, reality_of
from mechstudy.runner.run import Run
from mechstudy.runner.slurm.accounting import Accounted
from tests.support.toy_units import unit

HARDWARE = Hardware(
    name="toy", device="cuda", memory_bytes=10**12, flops={"float32": 1e9}, memory_bandwidth=1e9, su_per_gpu_hour=2.0
)


def run_of(folder: Path, **sizes: int) -> Run:
    """Two captures, of which the plan knows one file each, and a report."""
    units = [
        unit(
            f"capture[{i}]",
            entry="payload",
            estimate=Estimate(1100, 10, 1e9, payload={"rows.bin": sizes.get(f"rows{i}", 1000)}),
            payload=("*.bin",),
        )
        for i in range(2)
    ]
    units.append(unit("report", ["capture[0]", "capture[1]"]))
    return Run(folder, units, RunOptions(), NullProgress())


def accounted(job: str, state: str, seconds: float, **more) -> Accounted:
    row = Accounted(job, state, 0, 0, seconds, 4 * seconds, 3 * seconds, 4, 1, 8 << 30, 1 << 30, "", "", "node")
    return replace(row, **more)


def test_spent_and_planned_numbers_cover_the_finished_units(tmp_path):
    run = run_of(tmp_path)
    run.execute(["capture[0]"])
    cost = cost_of(run, HARDWARE)
    capture, report = cost.phases
    assert (capture.units, capture.done, report.done) == (2, 1, 0)
    manifest = reality_of(run.evaluate())["capture[0]"]
    assert capture.seconds == manifest.seconds and capture.peak_bytes == manifest.peak_bytes > 0
    one = cost.unit_rows[0][0].seconds
    assert one is not None and capture.planned_seconds == one
    assert capture.time_ratio == capture.seconds / one
    assert cost.total.planned_bytes == 1100


def test_files_of_static_shape_are_compared_even_when_discarded(tmp_path):
    run = run_of(tmp_path, rows1=999)
    run.execute()
    capture = cost_of(run, HARDWARE).phases[0]
    assert (capture.payload_files, capture.payload_wrong) == (2, 1)
    assert cost_of(run, HARDWARE).wrong == {"capture[1]/rows.bin": (999, 1000)}
    store = run.folder.store
    for artifact in store.all():
        store.discard(artifact, ["*.bin"])
    after = cost_of(run, HARDWARE).phases[0]
    assert (after.payload_files, after.payload_wrong) == (2, 1)
    assert after.bytes_published == capture.bytes_published
    assert after.bytes_now == capture.bytes_now - 2000


def test_requeued_and_failed_jobs_are_counted_with_what_they_cost():
    elements = {"7_0": "train[0]", "7_1": "train[1]", "9_0": "train[0]"}
    rows = [
        accounted("7_0", "REQUEUED", 100),
        accounted("7_0", "FAILED", 50),
        accounted(
            "9_0", "COMPLETED", 200, peak_rss_bytes=3 << 30, eligible="2030-01-01T00:00:00", start="2030-01-01T00:01:05"
        ),
        accounted("7_1", "CANCELLED", 0),
        accounted("7_1", "CANCELLED", 30),
        accounted("8_0", "COMPLETED", 999),
    ]
    assert attempts_of(elements, rows) == {
        "train[0]": Attempts(
            jobs=3, requeued=1, failed=1, seconds=350, gpu_seconds=350, cpu_seconds=1400, cpu_seconds_used=1050,
            peak_rss_bytes=3 << 30, lost_seconds=150, waited_seconds=65,
        ),
        "train[1]": Attempts(
            jobs=1, seconds=30, gpu_seconds=30, cpu_seconds=120, cpu_seconds_used=90, peak_rss_bytes=1 << 30,
            lost_seconds=30, cancelled=1,
        ),
    }  # fmt: skip


def test_gpu_hours_and_service_units_come_from_accounting_where_it_is(tmp_path, monkeypatch):
    run = run_of(tmp_path)
    run.execute()
    rows = [accounted("7_0", "REQUEUED", 1800), accounted("7_0", "COMPLETED", 1800)]
    monkeypatch.setattr(costs, "accounted_jobs", lambda folder: ({"7_0": "capture[0]", "7_1": "capture[1]"}, rows))
    cost = cost_of(run, HARDWARE)
    assert cost.accounted and (cost.total.gpu_hours, cost.total.service_units) == (1.0, 2.0)
    assert cost.total.jobs is not None and cost.total.jobs.requeued == 1
    assert cost.notes == ["1 submitted units have no accounted job yet"]
    monkeypatch.setattr(costs, "accounted_jobs", lambda folder: ({"7_0": "capture[0]"}, None))
    assert "no accounting" in cost_of(run, HARDWARE).notes[0]


def test_memory_of_a_unit_that_ran_on_a_gpu_is_the_gpu_s(tmp_path):
    run = run_of(tmp_path)
    artifact = run.execute(["capture[0]"]).unit("capture[0]").artifact
    assert artifact is not None
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    manifest |= {"runtime": {"device": "cuda"}, "peak_gpu_bytes": 77, "seconds": 36.0}
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    capture = cost_of(run, HARDWARE).phases[0]
    assert (capture.peak_bytes, capture.gpu_hours) == (77, 0.01)


def changed(run: Run, unit: str, **values) -> None:
    """Other values in a unit's manifest."""
    artifact = run.execute([unit]).unit(unit).artifact
    assert artifact is not None
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    (artifact.path / "manifest.json").write_text(json.dumps(manifest | values))


def test_memory_of_a_shared_unit_is_of_all_its_processes_planned_and_spent(tmp_path):
    cpu = HARDWARE.model_copy(update={"device": "cpu", "reserved_bytes": 100})
    run = run_of(tmp_path)
    runtime = {"device": "cpu", "world_size": 3, "peak_rss_bytes_of_helpers": [20, 30]}
    changed(run, "capture[0]", peak_rss_bytes=50, runtime=runtime)
    capture = cost_of(run, cpu).phases[0]
    assert (capture.peak_bytes, capture.planned_peak_bytes) == (100, 3 * 110)


def test_pilots_count_that_were_for_the_threads_it_ran_with(tmp_path):
    here = HARDWARE.model_copy(update={"device": "cpu", "source": "measured"})
    pilots = {"machine": machine_id(), "threads": 3, "finished": "2030", "auto": None, "fits": {}, "pilots": []}
    (tmp_path / "validate.json").write_text(json.dumps({"calibration": pilots}))
    for threads, calibrated in ((3, True), (1, False)):
        run = run_of(tmp_path)
        run.options = RunOptions(threads=threads)
        run.execute(force=["report", "capture[0]", "capture[1]"])
        assert (cost_of(run_of(tmp_path), here).calibration is not None) == calibrated


def test_a_unit_that_was_a_job_is_planned_with_the_start_of_its_process(tmp_path):
    here = HARDWARE.model_copy(
        update={"device": "cpu", "source": "measured", "startup_seconds": 7.0, "unit_seconds": 0}
    )
    run = run_of(tmp_path)
    run.execute()
    plain = cost_of(run, here).total.planned_seconds
    changed(run, "report", processes=[{"started": None, "slurm": {"job": "12"}}])
    cost = cost_of(run, here)
    assert cost.total.planned_seconds == pytest.approx(plain + 3 * 7.0)
    assert "units were jobs" in cost.notes[0]


def test_a_resumed_unit_counts_its_restarts(tmp_path):
    run = run_of(tmp_path)
    artifact = run.execute(["capture[0]"]).unit("capture[0]").artifact
    assert artifact is not None
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    manifest |= {"sessions": 3, "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T01:00:00+00:00"}
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    assert cost_of(run, HARDWARE).total.restarts == 2
    assert reality_of(run.evaluate())["capture[0]"].span_seconds == 3600


def test_a_cost_is_plain_json(tmp_path):
    run = run_of(tmp_path)
    run.execute()
    found = json.loads(json.dumps(cost_of(run, HARDWARE).as_json()))
    assert found["phases"]["capture"]["done"] == 2
    assert found["total"]["time_ratio"] == pytest.approx(found["total"]["seconds"] / found["total"]["planned_seconds"])
    assert asdict(Attempts())["jobs"] == 0


def test_the_command_prints_a_table(tmp_path, capsys):
    run = run_of(tmp_path, rows1=999)
    run.execute()
    show_cost(cost_of(run, HARDWARE), tmp_path)
    shown = capsys.readouterr().out
    assert "1 of 2 files of static shape have exactly the planned bytes" in shown
    assert "capture[1]/rows.bin: planned 999, is 1000" in shown


@pytest.mark.parametrize(("columns", "tables"), [(70, 4), (80, 4), (140, 2)])
def test_every_width_shows_every_phase_and_number(tmp_path, capsys, monkeypatch, columns, tables):
    run = run_of(tmp_path)
    run.execute()
    rows = [accounted("7_0", "COMPLETED", 86399)]
    monkeypatch.setattr(costs, "accounted_jobs", lambda folder: ({"7_0": "capture[0]"}, rows))
    monkeypatch.setenv("COLUMNS", str(columns))
    show_cost(cost_of(run, HARDWARE), tmp_path)
    shown = capsys.readouterr().out.partition("planned: for")[0]
    assert shown.count("\n phase ") == shown.count("\n capture ") == shown.count("\n total ") == tables
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= columns
