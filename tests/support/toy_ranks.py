"""A unit that several processes share: items that are digests, made one by one and kept until all are there."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import write_json_atomic
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifact_writer import ArtifactWriter
from mechstudy.store.manifest import Artifact
from mechstudy.study.unit import Unit
from tests.support.toy_units import unit


def items(n: int = 12, **spec: Any) -> Unit:
    """A unit of ``n`` items with a ``pause`` in each; rank ``on`` ``does`` something at its second item, once."""
    return unit("items", entry="tests.support.toy_ranks:run", shared="tests.support.toy_ranks:share", n=n, **spec)


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    with runtime.group.sharing({"word": "hello"}):
        share(spec, inputs, out, runtime)
    found = [(out.scratch / f"item-{i}").read_text() for i in range(spec["n"])]
    out.write_text("digest", hashlib.sha256("".join(found).encode()).hexdigest())


def share(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    ranks = runtime.group
    mine = ranks.mine(range(spec["n"]))
    facts = {"pid": os.getpid(), "size": ranks.size, "broadcast": dict(ranks.broadcast), "threads": runtime.threads}
    write_json_atomic(out.root.parent / f"rank-{ranks.rank}.json", facts)
    with runtime.progress.bar("items", len(mine), "items") as bar:
        for number, i in enumerate(mine):
            kept = out.scratch / f"item-{i}"
            if not kept.exists():
                if spec.get("on") == ranks.rank and number == 1:
                    _do(spec["does"], out.root.parent)
                time.sleep(spec.get("pause", 0.0))
                kept.write_text(hashlib.sha256(str(i).encode()).hexdigest())
                with (out.root.parent / "made").open("a") as made:
                    made.write(f"{i}\n")
            bar.advance(1)


def _do(what: str, run: Path) -> None:
    """Goes wrong, the first time."""
    mark = run / "went wrong"
    if mark.exists():
        return
    mark.touch()
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "refuse":
        raise MechstudyError("the toy is broken", where="toy.yaml:3", facts={"toy": "a bear"}, fix="fix it")
    if what == "crash":
        raise ZeroDivisionError("one over nothing\nand more")
    if what == "starve":
        raise MemoryError
    if what == "hear":
        end = time.monotonic() + 60
        while len(list(run.glob("rank-*.json"))) < 2 and time.monotonic() < end:  # until the other one is at work
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)


if __name__ == "__main__":
    import sys

    from mechstudy.machine.runtime_options import RunOptions
    from mechstudy.runner.processes.workers import led
    from mechstudy.runner.run import Run

    def work() -> int:
        study = [items(pause=float(sys.argv[2]))]
        return Run(Path(sys.argv[1]), study, RunOptions(threads=2, world_size=int(sys.argv[3]))).execute().exit_code

    sys.exit(led(work))
