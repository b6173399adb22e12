"""Units small enough to run a whole study of them in a test. Run as a script, it runs one until it is killed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from mechstudy.core.config import Config
from mechstudy.core.errors import MechstudyError
from mechstudy.core.work import Estimate
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactStore, ArtifactWriter
from mechstudy.study.fingerprints import file_fingerprint
from mechstudy.study.phases import registry
from mechstudy.study.phases.base import Phase
from mechstudy.study.phases.baseline import BaselinePhase
from mechstudy.study.unit import Input, Retention, Unit


class ToySpec(Config):
    """Any fields."""

    model_config = ConfigDict(extra="allow")


@dataclass(frozen=True)
class ToyPhase(Phase[ToySpec, dict[str, Artifact]]):
    """A phase whose ``run`` is a function of this module, or of another one (``module:function``)."""

    name: str
    entry: str = "digest"
    version: int = 1
    optional_inputs: bool = False
    reads_payload: bool = True
    payload: tuple[str, ...] = ()
    concludes: bool = False
    resumes: bool = False
    retention: Retention = "keep"
    shared: str | None = None
    spec = ToySpec
    inputs = dict[str, Artifact]
    title = ""

    @property
    def kind(self) -> str:
        return self.name

    @property
    def command(self):
        """That of the phase whose name it has."""
        return next((phase.command for phase in registry.phases() if phase.name == self.name), None)

    @property
    def reference(self) -> str:
        values = json.dumps(asdict(self)).encode().hex()
        return f"{__name__ if __name__ != '__main__' else 'tests.support.toy_units'}:toy_{values}"

    def units(self, plan):
        raise NotImplementedError

    def run(self, spec, inputs, out, runtime) -> None:
        _function(self.entry)(spec.canonical(), inputs, out, runtime)

    def share(self, spec, inputs, out, runtime) -> None:
        _function(self.shared)(spec.canonical(), inputs, out, runtime)

    def shares(self, unit: Unit) -> bool:
        return self.shared is not None

    def collect(self, unit: Unit, artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
        return dict(artifacts)

    def gate(self, output: Artifact) -> str | None:
        return BaselinePhase().gate(output) if self.entry == "baseline" else None

    def changed(self, spec: ToySpec, base: Path) -> str | None:
        file, expected = (spec.canonical().get(name) for name in ("file", "sha256"))
        return file if file is not None and file_fingerprint(base / file) != expected else None


def _function(entry: str) -> Callable[..., None]:
    module, _, name = entry.rpartition(":")
    return getattr(import_module(module or "tests.support.toy_units"), name)


def __getattr__(name: str) -> Any:
    """A phase by its reference."""
    if name.startswith("toy_"):
        values = json.loads(bytes.fromhex(name.removeprefix("toy_")))
        return ToyPhase(**{**values, "payload": tuple(values["payload"])})
    raise AttributeError(name)


def unit(
    name: str, inputs: Sequence[str] = (), *, phase: str | None = None, entry: str = "digest", **options: Any
) -> Unit:
    """A toy unit; options that are no fields of a unit or its phase make its spec."""
    of_phase = ("optional_inputs", "reads_payload", "version", "shared", "payload", "resumes")
    of_unit = ("gates", "retention", "estimate", "behaviour", "layer", "variant", "wave")
    phase_fields, fields = (
        {key: options.pop(key) for key in list(options) if key in known} for known in (of_phase, of_unit)
    )
    phase_fields["retention"] = options.pop("usual_retention", "keep")
    kind, _, about = name.partition("[")
    kind, about = phase or kind, about.rstrip("]")
    phase_fields.setdefault("concludes", kind == "report")
    if about.isdecimal():
        fields.setdefault("layer", int(about))
    elif about and not about.startswith("corpus"):
        fields.setdefault("behaviour", about)
    return Unit(
        name=name,
        phase=ToyPhase(kind, entry, **phase_fields),
        spec=ToySpec(**options),
        inputs=tuple(Input("model" if source == "model" else "inputs", source) for source in inputs),
        estimate=fields.pop("estimate", Estimate(bytes_on_disk=100, bytes_in_memory=1000)),
        **fields,
    )


def chain(**changes: Any) -> list[Unit]:
    """model -> (left, right) -> join -> report, each with a spec of its own."""
    specs: dict[str, dict[str, Any]] = {name: {"value": name} for name in ("model", "left", "right", "join")}
    for name, value in changes.items():
        specs[name] = {"value": value}
    return [
        unit("model", **specs["model"]),
        unit("left", ["model"], **specs["left"]),
        unit("right", ["model"], **specs["right"]),
        unit("join", ["left", "right"], **specs["join"]),
        unit("report", ["model", "left", "right", "join"], optional_inputs=True),
    ]


def sums(run: Path) -> dict[str, str]:
    """unit and file -> checksum of every artifact."""
    store = ArtifactStore(run / "artifacts")
    return {f"{a.unit}/{name}": file["sha256"] for a in store.all() for name, file in a.manifest["files"].items()}


# ---------------------------------------------------------------------------------------------- entries


def digest(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes a digest of the spec and of every input's digest."""
    parts = [f"{label}={artifact.file('digest').read_text()}" for label, artifact in sorted(inputs.items())]
    text = hashlib.sha256(repr([sorted(spec.items()), parts]).encode()).hexdigest()
    out.write_text("digest", text)
    out.write_json("inputs.json", sorted(inputs))
    _note(out)


def payload(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """A digest and a large file that can be discarded."""
    digest(spec, inputs, out, runtime)
    out.write_text("rows.bin", "x" * 1000)


def reads_payload(
    spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime
) -> None:
    """Needs the large file of its input."""
    assert inputs["capture"].file("rows.bin").stat().st_size == 1000
    digest(spec, inputs, out, runtime)


def reads_any_payload(
    spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime
) -> None:
    """Needs the large file of each input that has one."""
    for artifact in inputs.values():
        if "rows.bin" in artifact.manifest["files"]:
            assert artifact.file("rows.bin").stat().st_size == 1000
    digest(spec, inputs, out, runtime)


def baseline(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """A gate that passes when the spec says so."""
    digest(spec, inputs, out, runtime)
    gate = {"passed": spec["passed"], "min_accuracy": 0.8}
    out.write_json("summary.json", {"gate": gate, "splits": {"test": {"accuracy": 0.5}}})


def runs_as(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Its digest is how it runs, and how its inputs did."""
    parts = [artifact.file("digest").read_text() for artifact in inputs.values()]
    how = f"{runtime.group.size} of {runtime.threads}, {runtime.batch_tokens}"
    out.write_text("digest", "; ".join([*parts, how]))
    out.write_json("summary.json", {"how": "; ".join([*parts, how])})
    _note(out)


def refuses(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    raise MechstudyError("the toy is broken", where="toy.yaml:3", fix="fix it")


def says_what_is_absent(
    spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime
) -> None:
    out.write_json("absent.json", list(map(dict, runtime.absent)))


def crashes(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    raise ZeroDivisionError("one over nothing\nand more")


def broken_until_fixed(
    spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime
) -> None:
    if not Path(spec["fixed"]).exists():
        raise MechstudyError("not fixed yet")
    digest(spec, inputs, out, runtime)


def full_disk(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    raise OSError(28, "No space left on device")


def hungry(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Out of memory until batches are small enough; writes the batch size that was."""
    runtime.cache["model"] = "large"
    if runtime.batch_tokens > spec["fits"]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    out.write_text("digest", str(runtime.batch_tokens))


def dies(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Killed from outside, as by the kernel's out-of-memory killer, the first ``spec['times']`` times."""
    mark = out.scratch / "deaths"
    deaths = int(mark.read_text()) if mark.exists() else 0
    if deaths < spec["times"]:
        mark.write_text(str(deaths + 1))
        os.kill(os.getpid(), 9)
    digest(spec, inputs, out, runtime)


def interrupted(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    raise KeyboardInterrupt


def counting(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Counts slowly to ``spec['to']``, a checkpoint at every step; what it writes depends on every step."""
    state = out.scratch / "state"
    step, text = (state.read_text().split() if state.exists() else ["0", "start"])[:2]
    with runtime.progress.bar("steps", spec["to"], "steps", done=int(step)) as bar:
        for i in range(int(step), spec["to"]):
            text = hashlib.sha256(f"{text}{i}".encode()).hexdigest()
            temporary = state.with_suffix(".new")
            temporary.write_text(f"{i + 1} {text}")
            temporary.replace(state)
            bar.advance(1)
            time.sleep(spec.get("pause", 0.0))
    out.write_text("digest", text)
    _note(out)


def site(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """A report's pages."""
    out.write_text("index.html", "<title>A report</title>")
    out.write_text("usage.html", "<title>Usage</title>")


def deaf(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Takes its time and ignores requests to stop."""
    time.sleep(spec["pause"])
    digest(spec, inputs, out, runtime)


def from_checkpoint(
    spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime
) -> None:
    """Writes what the checkpoint it was given holds."""
    found = out.scratch / "checkpoint.safetensors"
    out.write_text("digest", found.read_text() if found.exists() else "from the start")


def loads_torch(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """A step that torch's profiler has something to say about."""
    import torch

    with runtime.progress.bar("steps", 4, "steps") as bar:
        for _ in range(4):
            total = (torch.ones(64, 64) @ torch.ones(64, 64)).sum()
            bar.advance(1, total=float(total))
    out.write_text("digest", f"{float(total)}")


def options(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """The options it runs with."""
    out.write_json("options.json", runtime.options.as_json())


def threads(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    out.write_text("digest", f"{runtime.threads} {os.environ['OMP_NUM_THREADS']}")


def _note(out: ArtifactWriter) -> None:
    """Appends to a file beside the artifacts which units have run, so that tests can count."""
    with (out.root.parent / "calls").open("a") as calls:
        calls.write(f"{out.unit}\n")


def calls(run: Path) -> list[str]:
    """Which units have run, in order, over all runs in this folder."""
    file = run / "calls"
    return file.read_text().split() if file.exists() else []


def toy_process(folder: Path, parallel: int, pause: float) -> subprocess.Popen[str]:
    """This module as a script: a model and three units that count, in a process of their own."""
    command = [sys.executable, "-m", "tests.support.toy_units", str(folder), str(parallel), str(pause)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)


def wait_for_steps(folder: Path, steps: int) -> None:
    """Until a train unit has counted so far."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for state in folder.glob("artifacts/train/*.partial/.scratch/state"):
            text = state.read_text()
            if text and int(text.split()[0]) >= steps:
                return
        time.sleep(0.01)
    raise AssertionError("the run did not come that far")


if __name__ == "__main__":
    from mechstudy.machine.runtime_options import RunOptions
    from mechstudy.runner.run import Run

    slow = [
        unit("model"),
        *[unit(f"train[{i}]", ["model"], entry="counting", to=100, pause=float(sys.argv[3])) for i in range(3)],
    ]
    result = Run(Path(sys.argv[1]), slow, RunOptions(max_parallel=int(sys.argv[2]))).execute()
    sys.exit(result.exit_code)


def use(monkeypatch, units) -> None:
    """Studies opened from now on have these units."""
    from mechstudy.planning import opened_study as opened

    monkeypatch.setattr(opened, "build_units", lambda *_: units)
