"""Plan, status and verify on toy units: from files alone, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.execution import plan as planning
from mechstudy.execution.engine import Run
from mechstudy.execution.jobs import Options
from mechstudy.execution.plan import Rate, human, make_plan
from mechstudy.execution.status import read_status
from mechstudy.execution.verify import verify_run
from mechstudy.phases.unit import Estimate
from tests.unit.toy_units import chain, unit

ROOT = Path(__file__).parents[2]
RATE = Rate(2e9, "made up")


def engine(folder: Path, units, **options) -> Run:
    return Run(folder, units, Options(**options), NullProgress())


def states(run: Run) -> dict[str, str]:
    return {row.unit: row.state for row in make_plan(run, rate=RATE).rows}


# ------------------------------------------------------------------------------------------------- plan


def test_a_plan_says_what_runs_at_once_what_waits_and_what_is_done(tmp_path):
    assert states(engine(tmp_path, chain())) == {
        "model": "runs",
        "left": "waits",
        "right": "waits",
        "join": "waits",
        "report": "waits",
    }
    engine(tmp_path, chain()).execute(["right"])
    assert states(engine(tmp_path, chain()))["left"] == "runs"
    assert states(engine(tmp_path, chain()))["right"] == "done"
    assert not (tmp_path / "artifacts" / "left").exists(), "a plan runs nothing"


def test_time_is_flops_over_half_the_measured_rate(tmp_path):
    plan = make_plan(engine(tmp_path, [unit("train[0]", estimate=Estimate(flops=5e9))]), rate=RATE)
    assert plan.seconds == 5.0
    assert plan.as_json()["time"] == {
        "seconds": 5.0,
        "label": "rough",
        "flops_per_second": 1e9,
        "source": "made up",
    }


def test_totals_are_per_phase_and_count_only_what_is_to_run(tmp_path):
    units = [unit(f"train[{i}]", estimate=Estimate(100 + i, 7 - i, 1e9)) for i in range(3)]
    engine(tmp_path, units).execute(["train[0]"])
    train = make_plan(engine(tmp_path, units), rate=RATE).phases()["train"]
    assert (train["units"], train["to_run"], train["flops"], train["seconds"]) == (3, 2, 2e9, 2.0)
    assert train["bytes_in_memory"] == 7


def captures(retention: str) -> list:
    """Two passes of a capture of 1,000 bytes and a dictionary of 10 trained on it."""
    units = []
    for i in range(2):
        options = {"retention": retention, "discard_patterns": ("*.bin",), "estimate": Estimate(1000)}
        units.append(unit(f"capture[{i}]", entry="payload", **options))
        units.append(unit(f"train[{i}]", [f"capture[{i}]"], estimate=Estimate(10)))
    return units


def test_the_fullest_moment_of_the_disk_is_counted_with_and_without_discarding(tmp_path):
    for retention, needed in (("discard", 1020), ("keep", 2020)):
        disk = make_plan(engine(tmp_path, captures(retention)), rate=RATE).disk
        assert (disk.needed, disk.needed_keeping, disk.needed_discarding) == (needed, 2020, 1020)


def test_a_disk_too_small_is_refused_with_how_much_is_missing_and_what_to_change(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_SPARE", 0)
    monkeypatch.setattr(planning, "free_bytes", lambda folder: 1500)
    refusal = make_plan(engine(tmp_path, captures("keep")), rate=RATE).refusal()
    assert refusal is not None
    assert "too small for this study by 520 B" in str(refusal)
    assert "storage.activations: discard (needs 1.02 kB)" in str(refusal)
    assert make_plan(engine(tmp_path, captures("discard")), rate=RATE).refusal() is None


def test_a_quota_is_a_limit_where_the_disk_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "free_bytes", lambda folder: 10**15)
    refusal = make_plan(engine(tmp_path, captures("keep"), quota=1500), rate=RATE).refusal()
    assert refusal is not None and refusal.facts["quota"] == "1.5 kB left of storage.quota"
    assert "storage.quota is too small for this study by 520 B" in str(refusal)
    assert "dictionaries.store_dtype: int8" in str(refusal)
    assert make_plan(engine(tmp_path, captures("keep"), quota=2020), rate=RATE).refusal() is None


def test_memory_is_that_of_the_largest_units_that_run_at_once(tmp_path):
    units = [unit(f"train[{i}]", estimate=Estimate(bytes_in_memory=100 * (i + 1))) for i in range(3)]
    assert make_plan(engine(tmp_path, units), rate=RATE).memory_needed == 300
    assert make_plan(engine(tmp_path, units, max_parallel=2), rate=RATE).memory_needed == 500


def test_the_machine_is_measured_in_well_under_a_second_on_a_cpu():
    rate = planning.measured_rate("cpu")
    assert rate.flops_per_second > 1e8
    assert "measured" in rate.source


def test_a_plan_is_plain_json(tmp_path):
    assert json.loads(json.dumps(make_plan(engine(tmp_path, chain()), rate=RATE).as_json()))["units"][0]["unit"] == (
        "model"
    )


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (999, "999 B"), (1250, "1.25 kB"), (3.4e15, "3.4e+03 TB")])
def test_bytes_for_people(n, text):
    assert human(n) == text


@pytest.mark.real
def test_the_config_that_spares_a_first_plan_the_download_is_the_model_s_own():
    from mechstudy.execution.model_files import _KNOWN_CONFIGS, config_of, local_folder
    from mechstudy.models.shapes import shapes_of

    for source, config in _KNOWN_CONFIGS.items():
        folder = local_folder(source, Path())
        if folder is None:
            pytest.skip(f"{source} is not fetched")
        assert shapes_of(config_of(folder)) == shapes_of(config)


@pytest.mark.parametrize("what", ["plan.make_plan", "status.read_status"])
def test_plan_and_status_import_no_torch(tmp_path, what):
    module, _, function = what.partition(".")
    code = (
        "import sys; from pathlib import Path; from tests.unit.test_execution_plan import engine, chain;"
        f"from mechstudy.execution.{module} import {function};"
        f"{function}(engine(Path({str(tmp_path)!r}), chain())); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# ----------------------------------------------------------------------------------------------- status


def test_status_tells_done_failed_stopped_and_pending_from_the_files(tmp_path):
    units = [
        unit("baseline[a]", entry="baseline", passed=False),
        unit("attribute[a]", gates=("baseline[a]",)),
        unit("train[0]", entry="refuses"),
        unit("features", ["train[0]"]),
    ]
    assert {u.status for u in read_status(engine(tmp_path, units)).units} == {"pending"}
    engine(tmp_path, units).execute()
    status = read_status(engine(tmp_path, units))
    assert {u.name: u.status for u in status.units} == {
        "baseline[a]": "done",
        "attribute[a]": "stopped",
        "train[0]": "failed",
        "features": "pending",
    }
    details = {u.name: u.detail for u in status.units}
    assert details["train[0]"] == "the toy is broken"
    assert details["features"] == "waits for train[0], which failed"
    assert status.holder is None


def test_status_of_a_running_unit_shows_its_live_progress(tmp_path):
    from tests.unit.test_execution_engine import toy_process, wait_for_steps
    from tests.unit.toy_units import unit as toy

    process = toy_process(tmp_path, 1, 0.1)
    try:
        wait_for_steps(tmp_path, 12)
        units = [toy("model"), *[toy(f"train[{i}]", ["model"], entry="counting", to=100, pause=0.1) for i in range(3)]]
        status = read_status(engine(tmp_path, units))
    finally:
        process.kill()
        process.wait()
    train = next(u for u in status.units if u.name == "train[0]")
    assert status.holder is not None and status.holder["pid"] == process.pid
    assert train.status == "running"
    assert train.detail.startswith("steps ") and "/100 steps" in train.detail
    assert train.seconds is not None
    assert {u.name: u.status for u in status.units}["train[1]"] == "pending"
    interrupted = next(u for u in read_status(engine(tmp_path, units)).units if u.name == "train[0]")
    assert (interrupted.status, interrupted.detail) == ("pending", "begun; will be resumed")


# ----------------------------------------------------------------------------------------------- verify


def test_a_flipped_byte_is_found_named_and_only_that_unit_runs_again(tmp_path):
    run = engine(tmp_path, chain())
    artifact = run.execute().unit("left").artifact
    assert artifact is not None
    assert verify_run(tmp_path).problems == []
    file = artifact.path / "digest"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    found = verify_run(tmp_path)
    assert [str(problem) for problem in found.problems] == [f"{artifact.name}/digest: checksum"]
    assert found.moved[artifact.name].name == f"{artifact.path.name}.damaged"
    assert found.n_artifacts == 5
    assert engine(tmp_path, chain()).execute().ran == ["left"]
    again = verify_run(tmp_path)
    assert (again.problems, again.n_artifacts) == ([], 5), "what was set aside is not looked at again"


def test_a_damaged_manifest_and_a_missing_file_are_found_too(tmp_path):
    result = engine(tmp_path, chain()).execute()
    left, right = result.unit("left").artifact, result.unit("right").artifact
    assert left is not None and right is not None
    (left.path / "manifest.json").write_text("{")
    (right.path / "digest").unlink()
    found = {str(problem) for problem in verify_run(tmp_path).problems}
    assert found == {f"{left.name}/manifest.json: manifest", f"{right.name}/digest: missing"}
    assert engine(tmp_path, chain()).execute().ran == ["left", "right"]


def test_verifying_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(MechstudyError, match="there is no run here"):
        verify_run(tmp_path / "nothing")


def test_unfinished_work_is_no_damage(tmp_path):
    artifact = engine(tmp_path, chain()).execute().unit("left").artifact
    assert artifact is not None
    shutil.move(artifact.path, artifact.path.with_name(artifact.path.name + ".partial"))
    assert verify_run(tmp_path).problems == []
