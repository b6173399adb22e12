"""`mechstudy cost` against the cluster's own accounting: every run of every job, and what it held and used."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.slurm.runs import Submitted, units, wait_until
from tests.slurm.study import ONE_BEHAVIOUR

pytestmark = pytest.mark.slurm

FIELDS = ("JobID", "State", "ElapsedRaw", "CPUTimeRAW", "TotalCPU", "Start", "Eligible")


def sacct(submitted: Submitted) -> dict[tuple[str, str], dict[str, str]]:
    """(job, start) -> the fields, of every run of the study's jobs that began."""
    printed = submitted.cluster.call(
        "sacct", "-D", "-X", "-n", "-P", "-S", "now-1hour", "-o", f"WorkDir,{','.join(FIELDS)}"
    )
    rows = [line.split("|") for line in printed.splitlines()]
    found = [dict(zip(FIELDS, row[1:], strict=True)) for row in rows if row[0] == str(submitted.folder)]
    return {(row["JobID"], row["Start"]): row for row in found if row["Start"] not in ("", "Unknown", "None")}


def test_cost_agrees_with_sacct_about_jobs_put_back_cancelled_and_done(submitted: Submitted) -> None:
    # Five idle seconds in each, so that no job, on however fast a machine, ends before it is put back.
    slow = f"compute.slurm.activate=sleep 5; export PATH={Path(sys.executable).parent}:$PATH"
    submitted.mechstudy("submit", "--set", ONE_BEHAVIOUR, "--set", "dictionaries.layers=1", "--set", slow)
    first = next(row for row in submitted.queue() if row.name == "tiny-model")

    def running(name: str) -> bool:
        return any(row.name == name and row.state == "RUNNING" for row in submitted.queue())

    wait_until(lambda: running("tiny-model"), "the first job to run")
    time.sleep(1.5)  # accounted in whole seconds
    submitted.cluster.call("scontrol", "requeue", f"{first.job}_{first.task}")

    def completed() -> int:
        return sum(row["State"] == "COMPLETED" for row in sacct(submitted).values())

    wait_until(lambda: completed() >= 2, "the model and the prompts")
    submitted.mechstudy("cancel")
    submitted.wait()

    wait_until(lambda: all(row["State"] != "RUNNING" for row in sacct(submitted).values()), "slurmdbd")
    shown = submitted.mechstudy("cost", "--json")
    cost = json.loads(shown[shown.index("{") : shown.rindex("}") + 1])
    ran = {key: row for key, row in sacct(submitted).items() if int(row["ElapsedRaw"])}
    states = [row["State"].split()[0] for row in ran.values()]
    assert cost["accounted"] and "REQUEUED" in states and states.count("COMPLETED") >= 2, states

    kept = [json.loads(line) for line in (submitted.run / "slurm" / "accounting.jsonl").read_text().splitlines()]
    ours = {(row["job"], row["start"]): row for row in kept if row["seconds"]}
    assert ours.keys() == ran.keys()
    for key, row in ran.items():
        mine = ours[key]
        assert (mine["state"], mine["seconds"]) == (row["State"].split()[0], float(row["ElapsedRaw"]))
        assert mine["cpu_seconds_held"] == float(row["CPUTimeRAW"])

    waits = [datetime.fromisoformat(row["Start"]) - datetime.fromisoformat(row["Eligible"]) for row in ran.values()]
    total = cost["total"]["jobs"]
    assert total["waited_seconds"] == sum(max(0.0, wait.total_seconds()) for wait in waits)
    assert total["jobs"] == len(ran) and total["requeued"] == states.count("REQUEUED")
    assert total["seconds"] == sum(int(row["ElapsedRaw"]) for row in ran.values())
    assert total["cpu_seconds"] == sum(int(row["CPUTimeRAW"]) for row in ran.values())
    assert total["cpu_seconds_used"] > 0
    assert cost["phases"]["model"]["jobs"]["jobs"] == 2, "the one that was put back, and the one that went on"
    done = sum(1 for row in cost["units"] if "spent" in row)
    assert done == len(units(submitted.run))
