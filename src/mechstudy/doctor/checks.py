"""All checks of a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from mechstudy.doctor import disks, machine, outside
from mechstudy.doctor.check import Check

Probe = Callable[[], list[Check]]


def check_machine(run_folder: Path, cache: Path, *, quick: bool = False) -> Iterator[Check]:
    """Checks this machine.

    Args:
        run_folder: the folder that runs write to.
        cache: the folder of fetched models.
        quick: skip torch and the measurements of disks.
    """
    software: dict[str, Probe] = {
        "python": machine.python,
        "cores": machine.cores,
        "memory": machine.memory,
        "huge pages": machine.huge_pages,
        "gpu driver": machine.gpu_driver,
    }
    folders: dict[str, Probe] = {
        name: partial(disks.folder, name, path) for name, path in (("run folder", run_folder), ("cache", cache))
    }
    network: dict[str, Probe] = {"slurm": outside.slurm, "hub": outside.hub}
    yield from run_checks(software | network if quick else software | folders | network)
    if not quick:
        from mechstudy.doctor import torch_checks

        yield from run_checks(
            {
                "build": torch_checks.build,
                "precision": torch_checks.precision,
                "threading": torch_checks.threading,
            }
        )


def run_checks(probes: Mapping[str, Probe]) -> Iterator[Check]:
    """Runs each probe; one that fails itself gives a warning."""
    for name, probe in probes.items():
        try:
            yield from probe()
        except Exception as error:
            yield Check(name, "warn", f"could not be checked: {type(error).__name__}: {error}")
