#!/usr/bin/env python3
"""A small Slurm for tests: sbatch, squeue, scontrol, scancel, sacct and sinfo by the name it is called with.

State is a JSON file in $FAKE_SLURM. Nothing runs by itself: tests run an element with `FakeSlurm.run`. ``behave.json``
there makes a command refuse (``{"sbatch": "error: ..."}``), hang (``{"sbatch": "hang"}``), or hang after it has worked
(``{"sbatch": "hang after"}``); ``{"sbatch": {"3": "error: ..."}}`` the third call alone.

Variables work as Slurm's do: SBATCH_* are above a script's lines, SQUEUE_* filter what squeue shows, and a job's record
has the environment of its sbatch.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path


def home() -> Path:
    return Path(os.environ["FAKE_SLURM"])


def main() -> int:
    command, words = Path(sys.argv[0]).name, sys.argv[1:]
    with (home() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = json.loads((home() / "state.json").read_text()) if (home() / "state.json").exists() else fresh()
        state["calls"].append([command, *words])
        answer = behaviour(state, command)
        if answer is None or answer == "hang after":
            code = globals()[command](state, words)
        (home() / "state.json").write_text(json.dumps(state))
    if answer is None:
        return code
    if answer.startswith("hang"):
        time.sleep(30)
    print(answer, file=sys.stderr)
    return 1


OVERRIDES = {
    "SBATCH_TIMELIMIT": "time", "SBATCH_PARTITION": "partition", "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_SIGNAL": "signal", "SBATCH_ACCOUNT": "account",
}  # fmt: skip


def fresh() -> dict:
    return {"next": 100, "jobs": {}, "calls": []}


def behaviour(state: dict, command: str) -> str | None:
    file = home() / "behave.json"
    wanted = json.loads(file.read_text()).get(command) if file.exists() else None
    if isinstance(wanted, dict):
        number = sum(call[0] == command for call in state["calls"])
        return wanted.get(str(number))
    return wanted


def sbatch(state: dict, words: list[str]) -> int:
    script = Path(words[-1])
    given = [line[len("#SBATCH ") :] for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    asked: dict[str, str] = {}
    variables = [f"--{name}={os.environ[variable]}" for variable, name in OVERRIDES.items() if os.environ.get(variable)]
    for word in [*given, *variables, *words[:-1]]:
        name, _, value = word.removeprefix("--").partition("=")
        asked[name] = value.strip('"')
    job, state["next"] = str(state["next"]), state["next"] + 1
    tasks = {str(i): {"state": "PENDING", "reason": "Priority"} for i in indices(asked["array"].partition("%")[0])}
    inherited = {name: value for name, value in os.environ.items() if name not in ("FAKE_SLURM", "PATH")}
    state["jobs"][job] = {
        "script": script.read_text(), "asked": asked, "tasks": tasks, "time": 0, "environment": inherited,
    }  # fmt: skip
    set_reasons(state)
    print(job)
    return 0


def indices(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def set_reasons(state: dict) -> None:
    """Dependencies, as afterok and afterany mean them; an invalid one takes the job out of the queue."""
    for _ in state["jobs"]:
        for job in state["jobs"].values():
            kind, *needs = job["asked"].get("dependency", "").split(":")
            ends = [task["state"] for need in needs for task in elements(state, need)]
            for task in job["tasks"].values():
                if task["state"] != "PENDING":
                    continue
                if kind == "afterany":
                    ends = ["COMPLETED" if end in ("FAILED", "CANCELLED", "TIMEOUT") else end for end in ends]
                if any(end in ("FAILED", "CANCELLED", "TIMEOUT") for end in ends):
                    if job["asked"].get("kill-on-invalid-dep") == "yes" and not (home() / "keeps").exists():
                        task["state"] = "CANCELLED"
                    task["reason"] = "DependencyNeverSatisfied"
                elif any(end != "COMPLETED" for end in ends):
                    task["reason"] = "Dependency"
                elif task["reason"].startswith("Dependency"):
                    task["reason"] = "Priority"


def squeue(state: dict, words: list[str]) -> int:
    for id, job in state["jobs"].items():
        for index, task in job["tasks"].items():
            if task["state"] in ("PENDING", "RUNNING", "COMPLETING") and shown(job, task, words):
                node = "node1" if task["state"] != "PENDING" else ""
                print("|".join([id, index, task["state"], task["reason"], node, "0:10", job["asked"]["comment"]]))
    return 0


def shown(job: dict, task: dict, words: list[str]) -> bool:
    """What is left by the user's variables, and of hidden partitions without -a."""
    if os.environ.get("SLURM_CLUSTERS") or os.environ.get("SQUEUE_FORMAT2"):
        return False
    if job["asked"].get("partition") == "hidden" and "-a" not in words:
        return False
    states = os.environ.get("SQUEUE_STATES", "").split(",")
    facts = {"PARTITION": job["asked"].get("partition"), "NAMES": job["asked"]["job-name"], "ACCOUNT": "mine"}
    same = all(os.environ.get(f"SQUEUE_{name}", fact) == fact for name, fact in facts.items())
    return same and (states == [""] or task["state"] in states)


def elements(state: dict, name: str) -> list[dict]:
    id, _, index = name.partition("_")
    if id not in state["jobs"]:
        return []
    tasks = state["jobs"][id]["tasks"]
    return [tasks[index]] if index else list(tasks.values())


def scontrol(state: dict, words: list[str]) -> int:
    if words == ["show", "config"]:
        print(f"MaxArraySize            = {os.environ.get('FAKE_MAX_ARRAY', '1001')}")
        return 0
    if words[0] == "requeue":
        for task in elements(state, words[1]):
            task |= {"state": "PENDING", "reason": "BeginTime", "restarts": task.get("restarts", 0) + 1}
        return 0
    if words[0] == "update":
        values = dict(word.split("=", 1) for word in words[1:])
        state["jobs"][values["JobId"]]["asked"]["dependency"] = values["Dependency"]
        for task in state["jobs"][values["JobId"]]["tasks"].values():
            if task["state"] == "PENDING":
                task["reason"] = "Priority"
        set_reasons(state)
        return 0
    if words[:3] == ["-o", "show", "job"]:
        found = elements(state, words[3])
        if not found:
            print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
            return 1
        print(f"JobId=1 ArrayJobId={words[3]} JobState={found[0]['state']} Reason=None")
        return 0
    raise AssertionError(words)


def scancel(state: dict, words: list[str]) -> int:
    for name in words:
        for task in elements(state, name):
            if task["state"] in ("PENDING", "RUNNING"):
                task["state"] = "CANCELLED"
    set_reasons(state)
    return 0


def sacct(state: dict, words: list[str]) -> int:
    wanted = words[words.index("-j") + 1].split(",")
    for id in wanted:
        for index, task in state["jobs"].get(id, {"tasks": {}})["tasks"].items():
            code = {"TIMEOUT": "0:15", "COMPLETED": "0:0"}.get(task["state"], f"{task.get('code', 1)}:0")
            times = ["60", "120", "01:30.5", "billing=2,cpu=2,gres/gpu=1,mem=4G,node=1", "", "2030-01-01T00:00:00"]
            print(
                "|".join(
                    [
                        f"{id}_{index}",
                        task["state"],
                        code,
                        *times,
                        "2030-01-01T00:01:00",
                        "node1",
                        "2029-12-31T23:58:30",
                    ]
                )
            )
            print(
                "|".join([f"{id}_{index}.batch", task["state"], code, *times[:4], "2048K", *times[5:], "", "node1", ""])
            )
    return 0


def sinfo(state: dict, words: list[str]) -> int:
    print("cpu*\ngpu")
    return 0


class FakeSlurm:
    """For tests, in their own process: puts the commands on PATH and plays the cluster."""

    COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sacct", "sinfo")

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name in self.COMMANDS:
            script = folder / "bin" / name
            script.write_text(f"#!{sys.executable} -S\n" + Path(__file__).read_text())
            script.chmod(0o755)
        monkeypatch.setenv("FAKE_SLURM", str(folder))
        monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def without(self, *commands: str) -> None:
        for name in commands:
            (self.folder / "bin" / name).unlink()

    def behave(self, **how) -> None:
        (self.folder / "behave.json").write_text(json.dumps(how))

    @property
    def state(self) -> dict:
        file = self.folder / "state.json"
        return json.loads(file.read_text()) if file.exists() else fresh()

    def save(self, state: dict) -> None:
        set_reasons(state)
        (self.folder / "state.json").write_text(json.dumps(state))

    @property
    def jobs(self) -> dict[str, dict]:
        return self.state["jobs"]

    def calls(self, command: str) -> list[list[str]]:
        return [call[1:] for call in self.state["calls"] if call[0] == command]

    def set(self, element: str, **facts) -> None:
        state = self.state
        job, _, index = element.partition("_")
        state["jobs"][job]["tasks"][index] |= facts
        self.save(state)

    def forget(self, job: str) -> None:
        """Purged from the queue, as Slurm does after MinJobAge."""
        state = self.state
        del state["jobs"][job]
        self.save(state)

    def ready(self) -> list[str]:
        """Elements whose dependencies are satisfied."""
        state = self.state
        set_reasons(state)
        return [
            f"{id}_{index}"
            for id, job in state["jobs"].items()
            for index, task in job["tasks"].items()
            if task["state"] == "PENDING" and not task["reason"].startswith("Dependency")
        ]

    def run(self, element: str, **environment: str) -> int:
        """Runs an element's script to its end, here and now, and sets its state by how it ended."""
        import subprocess

        job, _, index = element.partition("_")
        self.set(element, state="RUNNING", reason="None")
        before = self.jobs[job]["tasks"][index].get("restarts", 0)
        log = Path(self.jobs[job]["asked"]["output"].replace("%A", job).replace("%a", index))
        variables = {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": index, "SLURM_JOB_ID": job}
        if before:
            variables["SLURM_RESTART_COUNT"] = str(before)
        script = self.folder / f"script-{element}"
        script.write_text(self.jobs[job]["script"])
        with log.open("a") as out:
            variables = {**os.environ, **variables, **environment}
            done = subprocess.run(["bash", str(script)], env=variables, stdout=out, stderr=out, check=False)
        if self.jobs[job]["tasks"][index]["state"] == "RUNNING":
            self.set(element, state="COMPLETED" if done.returncode == 0 else "FAILED", code=done.returncode)
        return done.returncode

    def run_all(self, most: int = 100) -> list[str]:
        """Runs whatever is ready until nothing is; the elements in the order they ran."""
        ran = []
        while (ready := self.ready()) and len(ran) < most:
            self.run(ready[0])
            ran.append(ready[0])
        return ran


if __name__ == "__main__":
    sys.exit(main())
