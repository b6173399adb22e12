"""Every rule on a usage file that shows its cause, and on one without bottlenecks."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechstudy.monitoring import bottlenecks as b
from mechstudy.monitoring.bottlenecks import CAUSES, PhaseUsage, bottlenecks, by_phase
from mechstudy.monitoring.record import Gpu, GpuSample, Sample, Session, read_usage, to_lines
from mechstudy.monitoring.summary import Use, use_of
from mechstudy.study.phases import registry

GB = 10**9
STUDY = {"dictionaries": {"training": {"batch_size": 256}, "source": "store"}, "compute": {"batch_tokens": 4096}}

PROFILES = registry.usage_profiles()


def evidence_of(phase: str, use: Use, n_units: int = 1, **more: object) -> PhaseUsage:
    """What was measured of a phase, with what is expected of it."""
    units: dict[str, list[Session]] = {f"{phase}[{i}]": [] for i in range(n_units)}
    return PhaseUsage(phase, use, units, PROFILES[phase], **more)  # type: ignore[arg-type]


def use(tmp_path: Path, *, seconds: float = 100.0, session: dict | None = None, **end: object):
    """The use in a file whose session ended with these amounts; by default two of two threads are busy."""
    head = {"unit": "u", "phase": "train", "threads": 2, "cores": 2, "usable": 2.0, "memory_bytes": 16 * GB}
    amounts = {"cpu": 1.9 * seconds, "machine_cpu": 1.92 * seconds, "rss": GB, "available": 8 * GB, "swap": 0}
    samples = [Sample(seconds / 2, available=9 * GB), Sample(seconds, **{**amounts, **end})]  # type: ignore[arg-type]
    file = tmp_path / "u.usage.jsonl"
    file.write_text(to_lines([Session(**{**head, **(session or {})}, samples=samples)]))  # type: ignore[arg-type]
    summary = use_of(read_usage(file))
    assert summary is not None
    return summary


def gpu(busy: float, memory: float = 0.2, **end: object) -> dict:
    """A session on a GPU that was busy for this share of 100 seconds."""
    session = {"device": "cuda", "gpus": (Gpu("A100", 40 * GB),)}
    return {"session": session, "gpus": (GpuSample(100 * busy, int(memory * 40 * GB)),), "cpu": 60.0, **end}


LOW = {"cpu": 40.0, "machine_cpu": 42.0}
CASES = {
    b.SWAPPING: ({"swap": 2 * GB, **LOW}, {}, "2 GB went to swap", "compute.max_parallel: 1"),
    b.MEMORY: ({"available": GB // 2}, {}, "500 MB of 16 GB were left", "compute.max_parallel: 1"),
    b.QUOTA: ({"throttled": 30.0, "session": {"threads": 8}}, {}, "stopped 30% of the time", "compute.threads: 2"),
    b.OVERSUBSCRIBED: (
        {"wait_cpu": 60.0, "session": {"threads": 2, "parallel": 4}}, {}, "8 threads on 2 cores", "max_parallel: 2",
    ),
    b.OTHERS: ({"cpu": 100.0, "machine_cpu": 190.0}, {}, "used 45% of the machine's 2 cores", "compute.threads"),
    b.IDLE_GPU: ({}, {"gpus_here": 1}, "CPU of a machine with 1 GPU", "compute.device: auto"),
    b.LOADING: ({"wait_io": 50.0, "read": 5 * GB, "write": 0, **LOW}, {}, "read 50 MB/s", "compute.stage: auto"),
    b.WRITING: (
        {"wait_io": 50.0, "read": 0, "write": 5 * GB, **LOW}, {"phase": "capture"}, "wrote 50 MB/s", "dtype: int8",
    ),
    b.SLOW_CPU: (gpu(0.2, cpu=196.0), {}, "2 CPU threads were busy 98%", "compute.threads: 4"),
    b.SMALL_BATCH: (gpu(0.2), {"batch_is": 256}, "with 20% of its", "512"),
    b.ONE_THREAD: (
        {"cpu": 100.0, "machine_cpu": 102.0}, {"n_units": 3}, "1.00 cores busy on average of 2", "max_parallel: 2",
    ),
    b.QUEUE: ({}, {"queued": 400.0, "slurm": True}, "waited 6m40s in the queue", "compute.slurm.phases.train.time"),
    b.RESTARTS: ({}, {"restarts": 4, "slurm": True}, "restarted 4 times", "time, longer"),
    b.UNEXPLAINED: ({"cpu": 30.0, "machine_cpu": 32.0}, {}, "threads busy 15% of the time", "--profile"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_rule_names_its_cause_with_numbers_and_a_field(tmp_path: Path, name: str) -> None:
    end, more, says, change = CASES[name]
    evidence = evidence_of(**{"phase": "train", "use": use(tmp_path, **end), **more})
    first = bottlenecks(evidence)[0]
    assert first.name == name
    assert says in first.evidence and change in first.change


def test_every_rule_has_a_case_and_a_name_of_its_own() -> None:
    assert list(CAUSES) == list(CASES)


@pytest.mark.parametrize("phase", ["train", "capture", "attribute", "report", "prompts"])
def test_a_phase_that_keeps_its_threads_busy_has_no_bottleneck(tmp_path: Path, phase: str) -> None:
    assert bottlenecks(evidence_of(phase, use(tmp_path, wait_io=20.0, wait_cpu=10.0, read=GB, write=GB))) == []


def test_a_gpu_is_compared_with_the_range_of_its_phase(tmp_path: Path) -> None:
    half = use(tmp_path, **gpu(0.5))
    assert bottlenecks(evidence_of("train", half)) == []
    assert [cause.name for cause in bottlenecks(evidence_of("attribute", half))] == [b.SMALL_BATCH]
    assert bottlenecks(evidence_of("attribute", use(tmp_path, **gpu(0.9)))) == []


def test_swapping_is_named_before_the_idleness_it_causes(tmp_path: Path) -> None:
    both = use(tmp_path, swap=2 * GB, wait_io=60.0, read=GB, write=0, **LOW)
    assert [cause.name for cause in bottlenecks(evidence_of("train", both))] == [b.SWAPPING, b.LOADING]


def test_a_few_seconds_are_not_judged(tmp_path: Path) -> None:
    short = use(tmp_path, seconds=3.0, cpu=0.1, machine_cpu=0.1)
    assert bottlenecks(evidence_of("train", short)) == []
    [phase] = by_phase([[Session("u", "train", samples=[Sample(3.0, cpu=0.1)])]], STUDY, PROFILES)
    assert phase.verdict == "not judged"


def test_phases_come_in_their_order_with_the_field_of_their_batches() -> None:
    samples = [Sample(100.0, cpu=20.0)]
    units = [[Session(f"{phase}[1]", phase, threads=1, samples=samples)] for phase in ("attribute", "train", "capture")]
    phases = by_phase([*units, []], STUDY, PROFILES, {"train": {"queued": 1000.0}})
    assert [phase.phase for phase in phases] == ["capture", "train", "attribute"]
    assert [phase.verdict for phase in phases] == ["low"] * 3
    train = phases[1]
    assert (train.profile.batch, train.batch_is, train.queued, train.source) == (
        "dictionaries.training.batch_size", 256, 1000.0, "store",
    )  # fmt: skip
    assert phases[0].batch_is == 4096
