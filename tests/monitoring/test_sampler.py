"""The usage file beside an artifact: its content, kills and resumes, and errors that stop nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mechstudy.machine.runtime_options import RunOptions
from mechstudy.monitoring.gpu import gpu_probe
from mechstudy.monitoring.record import GpuSample, Sample, Session, read_usage, to_lines, usage_file, usages_below
from mechstudy.monitoring.sampler import Probe, UsageLog, monitored
from mechstudy.monitoring.summary import points, use_of
from mechstudy.runner.run import Run
from mechstudy.store.artifacts import ArtifactStore
from tests.support import toy_units
from tests.support.toy_units import unit

HEAD = Session("train[3]", "train", threads=2)


def session(**changes: object) -> Session:
    return Session(**{"unit": "u", "phase": "p", "threads": 2, "cores": 4, **changes})  # type: ignore[arg-type]


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.process
def test_cpu_seconds_of_the_process_and_its_ended_children_are_counted(tmp_path: Path) -> None:
    code = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    with monitored(tmp_path / "a.usage.jsonl", replace(HEAD, seconds=0.05)):
        burn(0.3)
        subprocess.run([sys.executable, "-c", code], check=True)
    [recorded] = read_usage(tmp_path / "a.usage.jsonl")
    assert (recorded.unit, recorded.phase, recorded.threads) == ("train[3]", "train", 2)
    assert 0.69 <= recorded.samples[-1].cpu <= 1.5
    assert all(a.cpu <= b.cpu and a.t < b.t for a, b in zip(recorded.samples, recorded.samples[1:], strict=False))
    assert recorded.samples[-1].rss > 10_000_000


def test_a_short_unit_has_one_sample_of_all_of_it(tmp_path: Path) -> None:
    with monitored(tmp_path / "a.usage.jsonl", HEAD):
        burn(0.1)
    [recorded] = read_usage(tmp_path / "a.usage.jsonl")
    assert len(recorded.samples) == 1 and recorded.samples[0].cpu >= 0.09


def test_bytes_written_to_disk_are_counted(tmp_path: Path) -> None:
    with monitored(tmp_path / "a.usage.jsonl", HEAD):
        (tmp_path / "rows").write_bytes(b"x" * 3_000_000)
    sample = read_usage(tmp_path / "a.usage.jsonl")[-1].samples[-1]
    if sample.write is None:
        pytest.skip("this machine does not count bytes of a process")
    assert sample.write >= 3_000_000


def test_a_resumed_unit_appends_and_a_new_one_starts_over(tmp_path: Path) -> None:
    file = tmp_path / "a.usage.jsonl"
    for resumes in (False, True):
        with monitored(file, HEAD, resumes=resumes):
            pass
    assert len(read_usage(file)) == 2
    with monitored(file, HEAD):
        pass
    assert len(read_usage(file)) == 1


def test_a_truncated_line_is_skipped_and_the_next_session_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.usage.jsonl"
    file.write_text(to_lines([session(samples=[Sample(1.0, 0.5), Sample(2.0, 1.0)])])[:-9])
    log = UsageLog(file, session(), resumes=True)
    log.add(Sample(1.0, 0.25))
    log.flush()
    first, second = read_usage(file)
    assert [sample.t for sample in first.samples] == [1.0]
    assert [sample.cpu for sample in second.samples] == [0.25]


def test_a_full_file_keeps_every_amount_and_peak_at_half_the_resolution(tmp_path: Path) -> None:
    log, t, taken = UsageLog(tmp_path / "a.usage.jsonl", session(), resumes=False, most=100), 0.0, 0
    while t < 1000:
        before, t = t, t + log.session.seconds
        peak, least = before < 333 <= t, before < 444 <= t
        log.add(Sample(t, cpu=0.5 * t, rss=777 if peak else 10, available=5 if least else 50))
        taken += 1
        log.flush()
        assert len(read_usage(log.file)[0].samples) <= 100
    [recorded] = read_usage(log.file)
    assert recorded.seconds == 16 and 50 <= len(recorded.samples) <= 100 < taken < 300
    use = use_of([recorded])
    assert use is not None
    assert (recorded.samples[-1].t, recorded.samples[-1].cpu, use.rss, use.available) == (t, 0.5 * t, 777, 5)


def test_many_short_sessions_do_not_grow_a_file_without_end(tmp_path: Path) -> None:
    file = tmp_path / "a.usage.jsonl"
    for _ in range(30):
        log = UsageLog(file, session(), resumes=True, most=10)
        log.add(Sample(1.0))
        log.flush()
    assert sum(len(recorded.samples) for recorded in read_usage(file)) <= 10


def test_a_failing_sampler_says_so_once_and_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def broken(_: object) -> Sample:
        raise PermissionError("not for you")

    monkeypatch.setattr(Probe, "read", broken)
    with monitored(tmp_path / "a.usage.jsonl", replace(HEAD, seconds=0.01), say=said.append):
        time.sleep(0.1)
    assert said == ["usage is no longer recorded: PermissionError: not for you"]
    with monitored(Path("/proc/nowhere/a.usage.jsonl"), HEAD, say=said.append):
        pass
    assert len(said) == 2 and said[1].startswith("usage is not recorded: ")


def test_what_happens_inside_is_not_touched(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        monitored(tmp_path / "a.usage.jsonl", HEAD),
    ):
        _ = 1 / 0
    assert len(read_usage(tmp_path / "a.usage.jsonl")[0].samples) == 1


# ------------------------------------------------------------------------------------------- in a run


def test_every_unit_has_a_usage_file_that_the_store_does_not_see(tmp_path: Path) -> None:
    watched, plain = tmp_path / "watched", tmp_path / "plain"
    Run(watched, toy_units.chain()).execute()
    Run(plain, toy_units.chain(), RunOptions(monitor=False)).execute()
    assert toy_units.sums(watched) == toy_units.sums(plain)
    assert usages_below(plain / "artifacts") == {}
    store = ArtifactStore(watched / "artifacts")
    assert store.verify() == [] and len(store.all()) == 5
    assert set(usages_below(watched / "artifacts")) == {usage_file(artifact.path) for artifact in store.all()}
    assert Run(watched, toy_units.chain()).execute().ran == []


@pytest.mark.process
def test_a_killed_and_resumed_unit_has_two_sessions(tmp_path: Path) -> None:
    units = [unit("train[1]", entry="dies", times=1), unit("other", entry="digest")]
    result = Run(tmp_path, units, RunOptions(max_parallel=2, monitor_seconds=0.05)).execute()
    assert result.exit_code == 0
    [file] = tmp_path.glob("artifacts/train/*.usage.jsonl")
    assert len(read_usage(file)) == 2


def test_a_unit_that_is_forced_to_run_again_has_only_its_own_usage(tmp_path: Path) -> None:
    Run(tmp_path, toy_units.chain()).execute()
    Run(tmp_path, toy_units.chain()).execute(force=["left"])
    [file] = tmp_path.glob("artifacts/left/*.usage.jsonl")
    assert len(read_usage(file)) == 1


# ---------------------------------------------------------------------------------------------- numbers


def test_shares_are_amounts_over_time_so_long_sessions_count_for_more() -> None:
    long = session(samples=[Sample(90.0, cpu=180.0, machine_cpu=270.0, read=900)])
    short = session(samples=[Sample(10.0, cpu=0.0, machine_cpu=10.0, read=100)])
    use = use_of([long, short])
    assert use is not None
    assert (use.seconds, use.cores, use.cpu, use.read_rate) == (100.0, 1.8, 0.9, 10.0)
    assert use.machine == pytest.approx(2.8 / 4)
    assert use.others == pytest.approx(1.0 / 4)
    assert use_of([session(), session(samples=[Sample(0.0)])]) is None


def test_a_gpus_busy_share_is_averaged_over_time_and_gpus() -> None:
    gpus = (GpuSample(8.0, 100, 1000.0), GpuSample(2.0, 300, 500.0))
    held = session(device="cuda", gpus=two_gpus(), samples=[Sample(10.0, cpu=5.0, gpus=gpus)])
    use = use_of([held])
    assert use is not None
    assert (use.gpu, use.busy, use.gpu_memory, use.gpu_memory_bytes, use.watts) == (0.5, 0.5, 300, 1000, 75.0)


def two_gpus() -> tuple:
    from mechstudy.monitoring.record import Gpu

    return (Gpu("A", 1000), Gpu("A", 1000))


def test_points_are_means_over_their_interval_and_put_sessions_end_to_end() -> None:
    samples = [Sample(float(i), cpu=2.0 * i if i <= 5 else 10.0, rss=i) for i in range(1, 11)]
    course = points([session(samples=samples), session(samples=samples)])
    assert [p.t for p in course] == [float(i) for i in range(1, 21)]
    assert [p.busy for p in course] == [*[1.0] * 5, *[0.0] * 5] * 2
    few = points([session(samples=samples)], most=2)
    assert [(p.t, p.busy, p.rss) for p in few] == [(5.0, 1.0, 5), (10.0, 0.0, 10)]


# -------------------------------------------------------------------------------------------------- GPUs


class FakeNvml:
    """Two GPUs as NVML reports them; without ``power``, like a slice of one."""

    class Rates:
        gpu = 75

    class Memory:
        total, used = 80_000, 30_000

    def __init__(self, power: bool = True) -> None:
        self.power = power

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 4

    def nvmlDeviceGetHandleByIndex(self, i: int) -> str:
        return f"gpu{i}"

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        return name

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return handle.encode()

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Rates:
        return self.Rates()

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Memory:
        return self.Memory()

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return 400_000

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        if not self.power:
            raise RuntimeError("Not Supported")
        return 300_000


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    return fake


@pytest.mark.parametrize(
    ("device", "n", "visible", "names"),
    [
        ("cuda", 1, None, ["gpu0"]),
        ("cuda:2", 1, None, ["gpu2"]),
        ("cuda", 2, None, ["gpu0", "gpu1"]),
        ("cuda:1", 1, "3,2", ["gpu2"]),
        ("cuda", 1, "GPU-ab-1", ["GPU-ab-1"]),
    ],
)
def test_the_gpus_watched_are_those_the_unit_runs_on(
    nvml: FakeNvml, device: str, n: int, visible: str | None, names: list[str]
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    probe = gpu_probe(device, n, environment)
    assert probe is not None and [gpu.name for gpu in probe.describe()] == names


def test_there_is_no_gpu_to_watch_on_a_cpu_or_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_probe("cpu") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_probe("cuda") is None
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())  # type: ignore[arg-type]
    assert gpu_probe("cuda", 1, {"CUDA_VISIBLE_DEVICES": "-1"}) is None


def test_gpu_use_becomes_seconds_and_joules(nvml: FakeNvml) -> None:
    now = [100.0]
    probe = Probe(gpu_probe("cuda", 1, {}), clock=lambda: now[0])
    now[0] = 102.0
    assert probe.read().gpus == (GpuSample(1.5, 30_000, 600.0),)
    now[0] = 106.0
    assert probe.read().gpus == (GpuSample(4.5, 30_000, 1800.0),)
    nvml.power = False
    now[0] = 107.0
    assert probe.read().gpus == (GpuSample(5.25, 30_000, None),)
    assert "joules" not in json.dumps(probe.read().as_json())
