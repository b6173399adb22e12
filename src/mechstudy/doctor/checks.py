"""All checks of a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from mechstudy.doctor import disks, machine
from mechstudy.doctor.machine import Check

Probe = Callable[[], list[Check]]


def check_machine(run_folder: Path, cache: Path, *, quick: bool = False) -> Iterator[Check]:
    """Checks this machine.

    Args:
        run_folder: the folder that runs write to.
        cache: the folder of fetched models.
        quick: skip torch and the measurements of disks.
    """
    software = _named(machine.python, machine.cores, machine.memory, machine.huge_pages, machine.gpu_driver)
    paths = {"run folder": run_folder, "cache": cache}
    folders = {} if quick else {name: partial(disks.folder, name, path) for name, path in paths.items()}
    yield from run_checks(software | folders | _named(machine.slurm, machine.hub))
    if not quick:
        from mechstudy.doctor import torch_checks

        yield from run_checks(_named(torch_checks.build, torch_checks.precision, torch_checks.threading))


def _named(*probes: Probe) -> dict[str, Probe]:
    return {probe.__name__.replace("_", " "): probe for probe in probes}


def run_checks(probes: Mapping[str, Probe]) -> Iterator[Check]:
    """Runs each probe; one that fails itself gives a warning."""
    for name, probe in probes.items():
        try:
            yield from probe()
        except Exception as error:
            yield Check(name, "warn", f"could not be checked: {type(error).__name__}: {error}")
