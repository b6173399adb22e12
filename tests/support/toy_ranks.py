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
from mechstudy.store.artifacts import Artifact, ArtifactWriter
from mechstudy.study.unit import Unit
from tests.support.toy_units import unit

ENTRY, SHARE = "tests.support.toy_ranks:run", "tests.support.toy_ranks:share"


def items(n: int = 12, **spec: Any) -> Unit:
    """A unit of ``n`` items with a ``pause`` in each; rank ``on`` ``does`` something at its second item, once."""
    made = unit("items", n=n, **spec)
    return Unit(**{**made.__dict__, "entry": ENTRY})


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    with runtime.ranks.helping({"word": "hello"}):
        share(spec, inputs, out, runtime)
    found = [(out.scratch / f"item-{i}").read_text() for i in range(spec["n"])]
    out.write_text("digest", hashlib.sha256("".join(found).encode()).hexdigest())


def share(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    ranks = runtime.ranks
    mine = ranks.mine(range(spec["n"]))
    facts = {"pid": os.getpid(), "size": ranks.size, "told": dict(ranks.told), "threads": runtime.threads}
    write_json_atomic(out.store.root.parent / f"rank-{ranks.rank}.json", facts)
    with runtime.progress.bar("items", len(mine), "items") as bar:
        for number, i in enumerate(mine):
            kept = out.scratch / f"item-{i}"
            if not kept.exists():
                if spec.get("on") == ranks.rank and number == 1:
                    _do(spec["does"], out.store.root.parent)
                time.sleep(spec.get("pause", 0.0))
                kept.write_text(hashlib.sha256(str(i).encode()).hexdigest())
                with (out.store.root.parent / "made").open("a") as made:
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
        raise MechstudyError("the toy is broken", where="toy.yaml:3", facts={"toy": "a bear"}, fix="mend it")
    if what == "crash":
        raise ZeroDivisionError("one over nothing\nand more")
    if what == "starve":
        raise MemoryError
    if what == "hear":
        os.kill(os.getpid(), signal.SIGUSR1)


if __name__ == "__main__":
    import sys

    from mechstudy.runner.processes import task
    from mechstudy.runner.processes.torchrun import led
    from mechstudy.runner.run import Run
    from mechstudy.runner.run_unit import Options

    task.SHARES[ENTRY] = SHARE

    def work() -> int:
        study = [items(pause=float(sys.argv[2]))]
        return Run(Path(sys.argv[1]), study, Options(threads=2, world_size=int(sys.argv[3]))).execute().exit_code

    sys.exit(led(work))
