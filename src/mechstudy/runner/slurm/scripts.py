"""The batch script of a group of units: one template, with every value quoted."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.runner.slurm.frozen import Frozen
from mechstudy.runner.slurm.groups import Group, sparse
from mechstudy.runner.slurm.record import LOGS
from mechstudy.study.slurm_config import SlurmConfig

TEMPLATE = "batch.sh.j2"
_HANDED_ON = ("MECHSTUDY_CACHE", "HF_HOME", "HF_HUB_OFFLINE")  # where models are; some sites hand on no environment
_LAST_MOMENTS = 60  # seconds before its limit that a worker which cannot stop is killed, so that the job can go on


def script_of(frozen: Frozen, group: Group, tasks: Collection[int], comment: str) -> str:
    """The text of a group's script.

    Args:
        tasks: indices of ``group.units`` that are to run.
        comment: kept with the job in Slurm; it identifies the run.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    config = frozen.slurm.of_phase(group.phase)
    environment = Environment(
        loader=PackageLoader("mechstudy.runner.slurm", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # a shell script, quoted by shlex
    )
    text: str = environment.get_template(TEMPLATE).render(
        directives=directives(frozen, config, group, tasks, comment),
        study=frozen.study["name"],
        group=group.key,
        count=_count(len(tasks), len(group.units)),
        modules=[shlex.quote(module) for module in config.modules],
        activate=activation(config.activate),
        environment={name: shlex.quote(os.environ[name]) for name in _HANDED_ON if os.environ.get(name)},
        mechstudy=_mechstudy(config),
        run=shlex.quote(str(frozen.run.resolve())),
        units_file=shlex.quote(str(units_file(frozen, group).resolve())),
        number=frozen.number,
        grace=max(config.lead // 2, config.lead - _LAST_MOMENTS),
    )
    return text


def script_file(frozen: Frozen, group: Group) -> Path:
    """``<run>/slurm/001/train.sbatch``."""
    return frozen.folder / f"{group.key}.sbatch"


def units_file(frozen: Frozen, group: Group) -> Path:
    """Names of the group's units, one a line, in the order of their indices."""
    return frozen.folder / f"{group.key}.units"


def directives(
    frozen: Frozen, config: SlurmConfig, group: Group, tasks: Collection[int], comment: str
) -> list[str]:  # fmt: skip
    """The ``#SBATCH`` lines, without that word."""
    at_once = f"%{config.concurrent}" if config.concurrent else ""
    log = pattern_safe(frozen.run.resolve() / "slurm" / LOGS)
    asked = {
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "gres": f"gpu:{config.gpus}" if config.gpus and config.gpus != "0" else None,
        "cpus-per-task": config.cpus,
        "mem": config.memory,
        "time": config.time,
    }
    return [
        f"--job-name={frozen.study['name']}-{group.key}",
        f"--comment={comment}",
        f"--array={sparse(tasks)}{at_once}",
        "--ntasks=1",
        *(f"--{name}={value}" for name, value in asked.items() if value is not None),
        *config.extra,
        f"--output={_quoted(f'{log}/{group.phase}-%A_%a.log')}",
        "--open-mode=append",
        f"--signal=B:USR1@{config.lead}",
        "--requeue" if config.requeue else "--no-requeue",
        "--kill-on-invalid-dep=yes",
    ]


def activation(activate: str | None) -> str | None:
    """The line that activates an environment: a folder's own script, or the line itself."""
    if activate is None:
        return None
    script = Path(activate).expanduser().absolute() / "bin" / "activate"
    return f"source {shlex.quote(str(script))}" if script.is_file() else activate


def pattern_safe(folder: Path) -> str:
    """A folder as it may stand in a file pattern of Slurm's, which replaces ``%j`` and the like."""
    text = str(folder)
    if '"' in text or "\\" in text or "\n" in text:
        raise MechstudyError(
            "a run whose path has quotes or backslashes in it cannot be submitted", where=text, fix="another --out"
        )
    return text.replace("%", "%%")


def _count(tasks: int, units: int) -> str:
    whole = f"{units} unit{'s' if units > 1 else ''}"
    return whole if tasks == units else f"{tasks} of {whole}"


def _quoted(text: str) -> str:
    return f'"{text}"' if any(c in text for c in " '#") else text


def _mechstudy(config: SlurmConfig) -> str:
    """This installation; or, where an environment is activated or modules are loaded for it, the one they give."""
    python = "python" if config.activate is not None else shlex.quote(sys.executable)
    return f"{python} -m mechstudy"
