"""Units small enough to run a whole study of them in a test. Run as a script, it runs one until it is killed."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactStore, ArtifactWriter
from mechstudy.study.unit import Estimate, Unit


def unit(
    name: str, inputs: Sequence[str] = (), *, phase: str | None = None, entry: str = "digest", **options: Any
) -> Unit:
    """A toy unit; options that are no fields of a unit make its spec."""
    fields = {"gates", "optional_inputs", "retention", "discard_patterns", "reads_payload", "estimate", "version"}
    kept = {key: options.pop(key) for key in list(options) if key in fields}
    return Unit(
        name=name,
        phase=phase or name.partition("[")[0],
        version=kept.pop("version", 1),
        spec=options,
        inputs={source: source for source in inputs},
        entry=f"tests.support.toy_units:{entry}",
        estimate=kept.pop("estimate", Estimate(bytes_on_disk=100, bytes_in_memory=1000)),
        **kept,
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
    how = f"{runtime.ranks.size} of {runtime.threads}, {runtime.batch_tokens}"
    out.write_text("digest", "; ".join([*parts, how]))
    out.write_json("summary.json", {"how": "; ".join([*parts, how])})
    _note(out)


def refuses(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    raise MechstudyError("the toy is broken", where="toy.yaml:3", fix="mend it")


def says_what_is_absent(
    spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime
) -> None:
    out.write_json("absent.json", list(map(dict, runtime.absent)))


def crashes(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    raise ZeroDivisionError("one over nothing\nand more")


def broken_until_mended(
    spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime
) -> None:
    if not Path(spec["mended"]).exists():
        raise MechstudyError("not mended yet")
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
    """Takes its time and looks after no request to stop."""
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


def threads(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    out.write_text("digest", f"{runtime.threads} {os.environ['OMP_NUM_THREADS']}")


def _note(out: ArtifactWriter) -> None:
    """Appends to a file beside the artifacts which units have run, so that tests can count."""
    with (out.store.root.parent / "calls").open("a") as calls:
        calls.write(f"{out.unit}\n")


def calls(run: Path) -> list[str]:
    """Which units have run, in order, over all runs in this folder."""
    file = run / "calls"
    return file.read_text().split() if file.exists() else []


if __name__ == "__main__":
    from mechstudy.runner.run import Run
    from mechstudy.runner.run_unit import Options

    slow = [
        unit("model"),
        *[unit(f"train[{i}]", ["model"], entry="counting", to=100, pause=float(sys.argv[3])) for i in range(3)],
    ]
    result = Run(Path(sys.argv[1]), slow, Options(max_parallel=int(sys.argv[2]))).execute()
    sys.exit(result.exit_code)


def use(monkeypatch, units) -> None:
    """Studies opened from now on have these units."""
    from mechstudy.runner import study_run as opened

    monkeypatch.setattr(opened, "build_units", lambda *_: units)
