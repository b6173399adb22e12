"""What is on record of how an artifact was made: processes and jobs, seeds, driver and libraries, accounting."""

from __future__ import annotations

import json
from dataclasses import replace

from mechstudy.core.seeds import drawn, forget_drawn, seed_for, seeds_in
from mechstudy.machine import hardware
from mechstudy.runner.slurm.accounting import (
    Accounted,
    accounting_file,
    accounting_of,
    keep_accounting,
    read_accounting,
)
from mechstudy.store.artifacts import ArtifactStore, artifact_id
from mechstudy.store.provenance import current_provenance, job_of, package_index, sessions_of, this_session

SPEC = {"training": {"seed": 7, "steps": 3}, "seeds": {"3": 8, "4": 9}, "seed": 5, "layers": [{"seed": 1}], "seeded": 2}


def begin(root, **environment):
    store = ArtifactStore(root / "artifacts")
    id = artifact_id("train", 1, SPEC, {})
    return store.writer("train", "train[3]", id, version=1, spec=SPEC, inputs={})


def test_every_process_is_on_record_with_its_host_and_job(tmp_path, monkeypatch):
    begin(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "44")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "42")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    artifact = begin(tmp_path).publish({})
    first, second = sessions_of(artifact.manifest)
    assert job_of(first) is None and job_of(second) == "42_3" and second["slurm"]["restart"] == "2"
    assert first["host"] and first["pid"] and first["started"] <= second["started"]
    assert artifact.manifest["sessions"] == 2 and artifact.verify() == []


def test_manifests_and_scratch_folders_of_earlier_versions_are_read(tmp_path):
    old = {
        "started": "2025-01-01T00:00:00+00:00",
        "sessions": 2,
        "provenance": {"hostname": "node7", "slurm": {"SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "0"}},
    }  # fmt: skip
    assert [job_of(s) for s in sessions_of(old)] == [None, "8_0"] and sessions_of(old)[-1]["host"] == "node7"
    assert sessions_of({"started": "x"}) == [{"started": "x", "host": None}]
    writer = begin(tmp_path)
    (writer.scratch / "sessions.json").write_text(json.dumps(["2025-01-01T00:00:00+00:00"]))
    manifest = begin(tmp_path).publish({}).manifest
    assert manifest["sessions"] == 2 and manifest["started"] == "2025-01-01T00:00:00+00:00"


def test_outside_a_job_a_session_names_none():
    assert "slurm" not in this_session({}) and job_of({"slurm": {"job": "5"}}) == "5"


def test_seeds_of_the_spec_and_those_that_were_drawn(tmp_path):
    assert seeds_in(SPEC) == {"training.seed": 7, "seeds.3": 8, "seeds.4": 9, "seed": 5, "layers.0.seed": 1}
    seed_for(0, "of another artifact", "x")
    writer = begin(tmp_path)
    seeds = [seed_for(5, "rows", f"order of epoch {epoch}") for epoch in range(3)]
    found = writer.publish({}).manifest["seeds"]
    assert found["spec"]["training.seed"] == 7
    assert found["drawn"] == {"rows: order of epoch #": {"times": 3, "first": seeds[0]}}


def test_purposes_on_record_are_bounded():
    forget_drawn()
    for i in range(500):
        seed_for(0, "u", "purpose " + "x" * i)
    assert len(drawn()) == 64
    forget_drawn()


def test_driver_and_cuda_are_apart(monkeypatch):
    csv = (
        "name, driver_version, memory.total [MiB], mig.mode.current, clocks.max.sm [MHz], power.limit [W]\n"
        "NVIDIA H100 80GB HBM3, 550.54.15, 81559 MiB, Disabled, 1980 MHz, 700.00 W\n"
        "NVIDIA H100 80GB HBM3, 550.54.15, 81559 MiB, Disabled, 1980 MHz, 700.00 W\n"
    )
    monkeypatch.setattr(hardware, "nvidia_smi", lambda: csv)
    monkeypatch.setattr(hardware, "driver_cuda", lambda: "12.4")
    found = hardware.gpu()
    assert found["driver"] == "550.54.15" and found["driver_cuda"] == "12.4"
    assert found["devices"] == ["NVIDIA H100 80GB HBM3"] * 2
    assert hardware.driver_and_names("GPU 0: NVIDIA H100 (UUID: GPU-1)") == (None, []) and hardware.driver_and_names(
        ""
    ) == (None, [])


def test_threads_and_blas_are_those_of_now(monkeypatch):
    import torch

    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    found = current_provenance()
    assert found["threads"]["torch"] == torch.get_num_threads() and found["threads"]["OPENBLAS_NUM_THREADS"] == "3"
    assert {"torch_blas", "deterministic", "float32_matmul_precision"} <= set(found["libraries"])
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert current_provenance()["threads"]["torch"] == before + 1
    finally:
        torch.set_num_threads(before)


# -------------------------------------------------------------------------------------------------- accounting


def accounted(job: str, state: str, seconds: float = 0.0, start: str = "Unknown") -> Accounted:
    """A row as Slurm gives it."""
    return Accounted(job, state, seconds=seconds, start=start)


def test_rows_are_kept_replaced_by_later_news_and_never_lost(tmp_path):
    units = {"42_0": "train[0]", "42_1": "train[1]"}
    waiting = [accounted("42_0", "PENDING"), accounted("42_1", "PENDING"), accounted("99", "RUNNING")]
    assert [row.state for row in keep_accounting(tmp_path, units, waiting)] == ["PENDING", "PENDING"]
    requeued = accounted("42_0", "REQUEUED", 60.0, "2026-01-01T00:00:00")
    again = accounted("42_0", "COMPLETED", 90.0, "2026-01-01T01:00:00")
    keep_accounting(tmp_path, units, [requeued, replace(again, state="RUNNING", seconds=1.0)])
    rows = keep_accounting(tmp_path, units, [again])
    assert [(row.job, row.state, row.seconds) for row in rows] == [
        ("42_0", "REQUEUED", 60.0), ("42_0", "COMPLETED", 90.0), ("42_1", "PENDING", 0.0),
    ]  # fmt: skip
    assert keep_accounting(tmp_path, units, []) == rows == read_accounting(tmp_path)


def test_a_broken_line_hides_no_other_and_an_absent_file_is_no_error(tmp_path):
    assert read_accounting(tmp_path) == []
    (row,) = keep_accounting(tmp_path, {"1": "train[0]"}, [accounted("1", "COMPLETED")])
    file = accounting_file(tmp_path)
    file.write_text("{half\n" + file.read_text().replace('"state"', '"later": 1, "state"') + '{"unit": "x"}\n')
    assert read_accounting(tmp_path) == [row]


def test_rows_of_an_artifact_are_those_of_the_jobs_that_worked_on_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "44")
    artifact = begin(tmp_path).publish({})
    units = {"43": "train[3]", "44": "train[3]", "45": "train[4]"}
    keep_accounting(tmp_path, units, [accounted(job, "COMPLETED", 1.0, "2026") for job in units])
    assert [row.job for row in accounting_of(tmp_path, artifact)] == ["44"]
    artifact.manifest.pop("processes")
    artifact.manifest["provenance"]["slurm"] = {}
    assert [row.job for row in accounting_of(tmp_path, artifact)] == ["43", "44"]


def test_cost_remembers_accounting_that_the_cluster_forgets(tmp_path, monkeypatch):
    from mechstudy.runner import measured_cost
    from mechstudy.runner.measured_cost import accounted_jobs
    from mechstudy.runner.slurm.record import Entry, Record, SubmittedJob

    job = SubmittedJob("train", "train", "42", {0: "train[0]"}, [], "train.sh")
    Record(tmp_path, "t", [Entry(1, "submit", "now", "s.yaml", [], None, [job])]).write()
    row = Accounted("42_0", "COMPLETED", 0, 0, 60.0, 120.0, 100.0, 2, 1, 10, 5, "2026-01-01T00:00:00", "", "n1")
    monkeypatch.setattr(measured_cost, "accounting", lambda _: None)
    assert accounted_jobs(tmp_path) == ({"42_0": "train[0]"}, None)
    for answer in ([row], None, []):
        monkeypatch.setattr(measured_cost, "accounting", lambda _, answer=answer: answer)
        assert accounted_jobs(tmp_path) == ({"42_0": "train[0]"}, [replace(row, unit="train[0]")])
    assert json.loads(accounting_file(tmp_path).read_text())["unit"] == "train[0]"


def test_a_build_of_torch_is_found_where_it_is():
    assert package_index({"torch": "2.6.0+cu124"}) == "https://download.pytorch.org/whl/cu124"
    assert package_index({"torch": "2.6.0"}) is None and package_index({}) is None
