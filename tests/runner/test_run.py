"""The engine on toy units: what runs again and what does not, gates, failures, retention, interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.core.progress import NullProgress
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.runner.completion import RunResult
from mechstudy.runner.run import Run
from mechstudy.study.unit import Unit
from tests.support.toy_units import calls, chain, sums, toy_process, unit, wait_for_steps

ROOT = Path(__file__).parents[2]


def run(folder: Path, units: list[Unit], targets=None, force=(), **options) -> RunResult:
    return Run(folder, units, RunOptions(**options), NullProgress()).execute(targets, force=force)


def statuses(result: RunResult) -> dict[str, str]:
    return {unit.name: unit.status for unit in result.units}


def digest(result: RunResult, name: str) -> str:
    artifact = result.unit(name).artifact
    assert artifact is not None
    return artifact.file("digest").read_text()


# ------------------------------------------------------------------------------------- what runs again


def test_every_unit_runs_once_inputs_first(tmp_path):
    result = run(tmp_path, chain())
    assert result.ran == calls(tmp_path) == ["model", "left", "right", "join", "report"]
    assert result.exit_code == 0


def test_a_second_run_runs_nothing(tmp_path):
    run(tmp_path, chain())
    again = run(tmp_path, chain())
    assert again.ran == []
    assert len(calls(tmp_path)) == 5
    assert set(statuses(again).values()) == {"done"}


def test_a_changed_spec_runs_again_with_its_dependents_and_nothing_else(tmp_path):
    run(tmp_path, chain())
    assert run(tmp_path, chain(left="other")).ran == ["left", "join", "report"]
    assert run(tmp_path, chain()).ran == [], "the first study's artifacts are still there"


def test_a_target_runs_with_what_it_needs_only(tmp_path):
    assert run(tmp_path, chain(), targets=["right"]).ran == ["model", "right"]


def test_an_input_that_is_missing_is_not_made_for_a_unit_that_is_complete(tmp_path):
    result = run(tmp_path, chain(), targets=["join"])
    left = result.unit("left").artifact
    assert left is not None
    Run(tmp_path, chain()).folder.store.remove(left)
    assert run(tmp_path, chain(), targets=["join"]).ran == []
    assert run(tmp_path, chain()).ran == ["left", "report"]


def test_an_unknown_target_is_refused_with_the_nearest_unit(tmp_path):
    with pytest.raises(MechstudyError, match="no unit rihgt") as error:
        run(tmp_path, chain(), targets=["rihgt"])
    assert "did you mean right?" in str(error.value)


def test_a_forced_unit_runs_again_and_its_dependents_do_not(tmp_path):
    run(tmp_path, chain())
    assert run(tmp_path, chain(), targets=["left"], force=["left"]).ran == ["left"]


def test_a_forced_unit_that_fails_leaves_the_artifact_that_was_there(tmp_path):
    fixed = tmp_path / "fixed"
    units = [unit("model", entry="broken_until_fixed", fixed=str(fixed))]
    fixed.touch()
    before = digest(run(tmp_path / "run", units), "model")
    fixed.unlink()
    failed = run(tmp_path / "run", units, force=["model"])
    assert statuses(failed) == {"model": "failed"}
    assert digest(run(tmp_path / "run", units), "model") == before
    assert not list((tmp_path / "run" / "artifacts").rglob("*.replaced"))


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([unit("a"), unit("a")], "two units are called a"),
        ([unit("a", ["b"])], "a needs b, which is not a unit"),
        ([unit("a", ["b"]), unit("b", ["a"])], "need each other in a circle: [ab] -> [ab]"),
    ],
)
def test_units_that_make_no_dag_are_refused(tmp_path, units, message):
    with pytest.raises(MechstudyError, match=message):
        Run(tmp_path, units)


# ----------------------------------------------------------------------------------------------- gates


def gated(passed: bool, passed_b: bool = True) -> list[Unit]:
    return [
        unit("baseline[a]", entry="baseline", passed=passed),
        unit("baseline[b]", entry="baseline", passed=passed_b),
        unit("attribute[a]", gates=("baseline[a]",)),
        unit("attribute[b]", gates=("baseline[b]",)),
        unit("intervene[a]", ["attribute[a]"]),
        unit("features", ["attribute[a]", "attribute[b]"], optional_inputs=True),
        unit("report", ["attribute[a]", "intervene[a]", "features"], optional_inputs=True),
    ]


def test_a_closed_gate_stops_dependents_but_not_optional_readers(tmp_path):
    result = run(tmp_path, gated(False))
    assert [n for n, s in statuses(result).items() if s == "stopped"] == ["attribute[a]", "intervene[a]"]
    reason = result.unit("intervene[a]").reason
    assert reason == "baseline[a] did not pass (accuracy 50% on test; the gate asks for 80%)"
    features = result.unit("features").artifact
    assert features is not None and features.read_json("inputs.json") == ["attribute[b]"]
    assert result.exit_code == 0


def test_a_second_run_of_a_stopped_study_runs_nothing(tmp_path):
    run(tmp_path, gated(False))
    again = run(tmp_path, gated(False))
    assert again.ran == []
    assert statuses(again)["attribute[a]"] == "stopped"


def test_a_gate_that_opens_runs_what_it_had_stopped_and_what_reads_it(tmp_path):
    run(tmp_path, gated(False))
    assert run(tmp_path, gated(True)).ran == ["baseline[a]", "attribute[a]", "intervene[a]", "features", "report"]


def test_a_gated_unit_waits_for_its_gate_even_when_only_it_is_asked_for(tmp_path):
    result = run(tmp_path, gated(False), targets=["attribute[a]"])
    assert result.ran == ["baseline[a]"]
    assert statuses(result)["attribute[a]"] == "stopped"


# -------------------------------------------------------------------------------------------- failures


def failing(entry: str, **spec: str) -> list[Unit]:
    return [
        unit("model"),
        unit("left", ["model"], entry=entry, **spec),
        unit("right", ["model"]),
        unit("join", ["left", "right"]),
        unit("last", ["join"]),
        unit("report", ["left", "right", "join"], optional_inputs=True),
    ]


@pytest.mark.parametrize(("entry", "code"), [("refuses", 2), ("crashes", 1)])
def test_a_failure_leaves_other_units_running_and_sets_the_exit_status(tmp_path, entry, code):
    result = run(tmp_path, failing(entry))
    assert result.ran == ["model", "right", "report"]
    assert statuses(result) | {} == {
        "model": "done",
        "left": "failed",
        "right": "done",
        "join": "pending",
        "last": "pending",
        "report": "done",
    }
    assert result.unit("join").reason == "waits for left, which failed"
    assert result.unit("last").reason == "waits for join, which could not run"
    assert result.exit_code == code


def test_a_crash_is_one_line_on_the_screen_and_a_traceback_in_the_log(tmp_path):
    progress = NullProgress()
    result = Run(tmp_path, failing("crashes"), RunOptions(), progress).execute()
    assert result.failures[0].crash == "ZeroDivisionError: one over nothing"
    assert "left failed: ZeroDivisionError: one over nothing" in progress.messages
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_after_a_fix_only_the_failed_unit_and_its_dependents_run(tmp_path):
    fixed = tmp_path / "fixed"
    units = failing("broken_until_fixed", fixed=str(fixed))
    run(tmp_path / "run", units)
    fixed.touch()
    assert run(tmp_path / "run", units).ran == ["left", "join", "last", "report"]


def test_a_full_disk_stops_the_run_with_the_folder_and_keeps_what_is_done(tmp_path):
    result = run(tmp_path, [unit("a"), unit("b", entry="full_disk"), unit("c")])
    assert statuses(result) == {"a": "done", "b": "failed", "c": "pending"}
    assert result.exit_code == 2
    error = str(result.failures[0].error)
    assert "the disk is full" in error and "b-" in error and "bytes" in error


def test_out_of_memory_halves_the_batch_and_frees_the_models(tmp_path):
    result = run(tmp_path, [unit("a", entry="hungry", fits=1500)], batch_tokens=4096)
    assert digest(result, "a") == "1024"
    assert "starting again with 2048 tokens per batch" in (tmp_path / "log.txt").read_text()


def test_memory_that_never_suffices_is_an_error_that_says_so(tmp_path):
    result = run(tmp_path, [unit("a", entry="hungry", fits=1)], batch_tokens=128)
    assert "not enough memory" in str(result.failures[0].error)
    assert "can't allocate memory" in str(result.failures[0].error)


# ------------------------------------------------------------------------------------------- retention


def discarding(train: str = "1", second: str = "1") -> list[Unit]:
    return [
        unit("model"),
        unit("capture", ["model"], entry="payload", retention="discard", payload=("*.bin",)),
        unit("train[0]", ["capture"], entry="reads_payload", value=train),
        unit("train[1]", ["capture"], entry="reads_payload", value=second),
        unit("report", ["train[0]", "train[1]"], optional_inputs=True),
    ]


def test_payload_is_deleted_once_every_consumer_has_its_artifact(tmp_path):
    capture = run(tmp_path, discarding(), targets=["train[0]"]).unit("capture").artifact
    assert capture is not None and capture.file("rows.bin").exists(), "train[1] of the study still needs it"
    capture = run(tmp_path, discarding()).unit("capture").artifact
    assert capture is not None and capture.is_discarded
    assert not (capture.path / "rows.bin").exists()
    assert capture.verify() == []


def test_a_later_demand_makes_discarded_payload_again_and_only_then(tmp_path):
    run(tmp_path, discarding())
    assert run(tmp_path, discarding()).ran == []
    assert run(tmp_path, discarding(second="2")).ran == ["capture", "train[1]", "report"]
    capture = run(tmp_path, discarding(second="2")).unit("capture").artifact
    assert capture is not None and capture.is_discarded


def test_a_failed_consumer_keeps_the_payload_for_its_next_try(tmp_path):
    fixed = tmp_path / "fixed"
    units = [
        unit("capture", entry="payload", retention="discard", payload=("*.bin",)),
        unit("train[0]", ["capture"], entry="broken_until_fixed", fixed=str(fixed)),
    ]
    capture = run(tmp_path / "run", units).unit("capture").artifact
    assert capture is not None and not capture.is_discarded
    fixed.touch()
    assert run(tmp_path / "run", units).ran == ["train[0]"]


# ----------------------------------------------------------------------------------- several processes


@pytest.mark.process
def test_units_side_by_side_write_the_same_bytes_as_one_after_another(tmp_path):
    run(tmp_path / "serial", chain())
    result = run(tmp_path / "parallel", chain(), max_parallel=2, threads=2)
    assert result.exit_code == 0
    assert sums(tmp_path / "serial") == sums(tmp_path / "parallel")


@pytest.mark.process
def test_errors_of_worker_processes_arrive_whole(tmp_path):
    result = run(tmp_path, [unit("a", entry="refuses"), unit("b", entry="crashes"), unit("c")], max_parallel=2)
    errors = {failure.name: failure.error or failure.crash for failure in result.failures}
    assert str(errors["a"]) == "toy.yaml:3: the toy is broken\n  fix:   fix it"
    assert errors["b"] == "ZeroDivisionError: one over nothing"
    assert statuses(result)["c"] == "done"


@pytest.mark.process
def test_a_killed_worker_is_tried_again_with_fewer_at_a_time(tmp_path):
    progress = NullProgress()
    units = [unit("a", entry="dies", times=1), unit("b")]
    result = Run(tmp_path, units, RunOptions(max_parallel=2), progress).execute()
    assert set(statuses(result).values()) == {"done"}
    assert "going on with 1 at a time" in progress.messages


@pytest.mark.process
def test_a_unit_killed_every_time_fails_and_the_others_are_done(tmp_path):
    result = run(tmp_path, [unit("a", entry="dies", times=9), unit("b"), unit("c")], max_parallel=2)
    assert statuses(result) == {"a": "failed", "b": "done", "c": "done"}
    assert "most likely because memory ran out" in str(result.failures[0].error)


# ---------------------------------------------------------------------------- interruptions and resuming


@pytest.mark.parametrize("parallel", [1, 2])
@pytest.mark.process
def test_kill_9_then_the_same_command_gives_the_same_checksums(tmp_path, parallel):
    assert toy_process(tmp_path / "whole", parallel, 0.0).wait() == 0
    process = toy_process(tmp_path / "cut", parallel, 0.02)
    wait_for_steps(tmp_path / "cut", 20)
    process.kill()
    process.wait()
    again = toy_process(tmp_path / "cut", parallel, 0.0)
    assert again.wait() == 0, again.stderr and again.stderr.read()
    cut, whole = sums(tmp_path / "cut"), sums(tmp_path / "whole")
    assert {k: v for k, v in cut.items() if "digest" in k} == {k: v for k, v in whole.items() if "digest" in k}
    assert calls(tmp_path / "cut").count("model") == 1


@pytest.mark.process
def test_a_second_process_is_refused_while_one_runs(tmp_path):
    process = toy_process(tmp_path, 1, 0.05)
    try:
        wait_for_steps(tmp_path, 1)
        with pytest.raises(MechstudyError, match="already running") as error:
            run(tmp_path, chain())
        assert str(process.pid) in str(error.value)
    finally:
        process.kill()
        process.wait()


@pytest.mark.process
def test_workers_die_with_their_parent(tmp_path):
    import psutil

    process = toy_process(tmp_path, 2, 0.05)
    wait_for_steps(tmp_path, 1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.parametrize("parallel", [1, 2])
@pytest.mark.process
def test_ctrl_c_stops_cleanly_and_says_what_was_interrupted(tmp_path, parallel):
    process = toy_process(tmp_path, parallel, 0.05)
    wait_for_steps(tmp_path, 1)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) != 0
    progress = read_json(tmp_path / "progress.json")
    assert progress["state"] == "interrupted"
    assert progress["units"]["model"]["status"] == "done"
    assert progress["units"]["train[0]"] == {"status": "pending", "reason": "interrupted"}


def test_a_unit_starts_from_the_checkpoint_it_is_given(tmp_path):
    given = tmp_path / "given" / "checkpoint.safetensors"
    given.parent.mkdir()
    given.write_text("from step 500")
    units = [unit("train[3]", entry="from_checkpoint")]
    result = run(tmp_path / "run", units, resume={"train[3]": given.parent})
    assert digest(result, "train[3]") == "from step 500"


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "given").mkdir()
    units = [unit("train[3]", entry="from_checkpoint")]
    result = run(tmp_path / "run", units, resume={"train[3]": tmp_path / "given"})
    assert "holds no checkpoint" in str(result.failures[0].error)


# ----------------------------------------------------------------------------------------- what is shown


def test_progress_and_log_have_seconds_memory_and_folder_of_each_unit(tmp_path):
    Run(tmp_path, chain(), RunOptions()).execute()
    log = (tmp_path / "log.txt").read_text()
    assert "[2/5] left starts" in log
    assert "left done in" in log and "GB at most" in log and "artifacts/left/left-" in log
    progress = read_json(tmp_path / "progress.json")
    assert progress["state"] == "finished"
    assert progress["counts"] == {"done": 5}
    assert progress["units"]["left"]["seconds"] is not None


@pytest.mark.process
def test_threads_are_split_between_units_that_run_side_by_side(tmp_path):
    result = run(tmp_path, [unit("a", entry="threads"), unit("b", entry="threads")], max_parallel=2, threads=6)
    assert digest(result, "a") == digest(result, "b") == "3 3"


def test_a_profile_is_a_trace_and_a_table(tmp_path):
    run(tmp_path, [unit("train[0]", entry="loads_torch")], trace_folder=tmp_path / "profile", threads=1)
    assert (tmp_path / "profile" / "train-0.trace.json").stat().st_size > 1000
    assert "aten::mm" in (tmp_path / "profile" / "train-0.txt").read_text()


@pytest.mark.process
def test_a_run_with_nothing_to_do_imports_no_torch(tmp_path):
    run(tmp_path, chain())
    code = (
        "import sys; from pathlib import Path; from tests.support.toy_units import chain;"
        "from mechstudy.runner.run import Run;"
        f"assert Run(Path({str(tmp_path)!r}), chain()).execute().ran == []; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
