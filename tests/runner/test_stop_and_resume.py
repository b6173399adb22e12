"""Status and verify on toy units: from files alone, without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mechstudy.archive.verify import verify_run
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.runner.run import Run
from mechstudy.runner.status import read_status
from tests.support.toy_units import chain, toy_process, unit, wait_for_steps

ROOT = Path(__file__).parents[2]


def engine(folder: Path, units, **options) -> Run:
    return Run(folder, units, RunOptions(**options), NullProgress())


@pytest.mark.process
@pytest.mark.parametrize("look", ["make_plan(run.evaluate(), run.folder.path, run.options)", "read_status(run)"])
def test_plan_and_status_import_no_torch(tmp_path, look):
    code = (
        "import sys; from pathlib import Path; from tests.support.toy_units import chain;"
        "from mechstudy.planning.plan import make_plan; from mechstudy.runner.run import Run;"
        "from mechstudy.runner.status import read_status;"
        f"run = Run(Path({str(tmp_path)!r}), chain()); {look}; sys.exit('torch' in sys.modules)"
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


@pytest.mark.process
def test_status_of_a_running_unit_shows_its_live_progress(tmp_path):
    process = toy_process(tmp_path, 1, 0.1)
    try:
        wait_for_steps(tmp_path, 12)
        units = [
            unit("model"),
            *[unit(f"train[{i}]", ["model"], entry="counting", to=100, pause=0.1) for i in range(3)],
        ]
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
