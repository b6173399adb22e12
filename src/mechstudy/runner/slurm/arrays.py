"""The arrays of a study's units: which units they hold, what they wait for, and their batch scripts.

An array per phase, and one per behaviour for units about a behaviour, so that nothing else waits for it or fails with
it; in waves where the disk is small. The scripts are of one template, with every value quoted.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mechstudy._version import __version__
from mechstudy.core.errors import MechstudyError
from mechstudy.runner.slurm.frozen import LOGS, REFUSALS, SLURM, Frozen
from mechstudy.runner.slurm.record import SubmittedJob
from mechstudy.store.manifest import slug
from mechstudy.study.dag import Graph
from mechstudy.study.slurm_config import SlurmConfig

TOGETHER = "behaviours"
TEMPLATE = "batch.sh.j2"
# Where models and data sets are, and whether the hub is asked: some sites hand on no environment. No tokens, which
# would stand in a file.
_HANDED_ON = (
    "MECHSTUDY_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE",
    "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT",
)  # fmt: skip
_LAST_MOMENTS = 60  # seconds before its limit that a worker which cannot stop is killed, so that the job can go on


@dataclass
class Group:
    """Units of one phase that are submitted together.

    ``units`` are all of them in order, so that a unit keeps its index; ``after`` are the keys of groups that some of
    them depend on. ``takes_what_is_there``: it starts once those have ended, whether well or not.
    """

    key: str
    phase: str
    units: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    takes_what_is_there: bool = False


def groups_of(
    graph: Graph,
    *,
    one_capture_at_a_time: bool = False,
    largest: int = 1001,
    concurrent: Callable[[str], int | None] = lambda _: None,
) -> list[Group]:
    """Every unit of a study in groups, each group after those it depends on.

    Args:
        one_capture_at_a_time: captured rows that are deleted after use are captured once the rows before them are
            deleted: where the disk does not hold all at once.
        largest: a group has fewer units than that (Slurm's MaxArraySize).
        concurrent: how many of a phase's units may run at once. Where there are more behaviours than that, theirs stay
            in one array, as only an array's elements can be limited.
    """
    made: list[Group] = []
    waves = _waves(graph) if one_capture_at_a_time else {}
    n_behaviours = len({unit.behaviour for unit in graph.units.values() if unit.behaviour is not None})
    groups: dict[tuple[str, int, str], list[Group]] = {}
    of_unit: dict[str, Group] = {}
    for name in graph.order:
        unit, wave = graph.units[name], waves.get(name, 0)
        phase, behaviour = unit.phase.name, slug(unit.behaviour) if unit.behaviour else ""
        if behaviour and n_behaviours > (concurrent(phase) or n_behaviours):
            behaviour = TOGETHER
        parts = groups.setdefault((phase, wave, behaviour), [])
        if not parts or len(parts[-1].units) >= largest - 1:
            key = ".".join(filter(None, (phase, behaviour))) + (f"-wave{wave + 1}" if wave else "")
            key = key if not parts else f"{key}-part{len(parts) + 1}"
            parts.append(Group(key, phase, takes_what_is_there=unit.phase.optional_inputs))
            made.append(parts[-1])
        parts[-1].units.append(name)
        of_unit[name] = parts[-1]
    for group in made:
        before = [of_unit[source].key for name in group.units for source in graph.upstream(name)]
        for name in group.units:  # rows of the wave before are deleted once they were read
            if graph.units[name].retention == "discard" and waves.get(name):
                wave_before = (reader for reader, wave in waves.items() if wave == waves[name] - 1)
                before += [of_unit[n].key for n in wave_before if graph.units[n].retention != "discard"]
        group.after = [key for key in dict.fromkeys(before) if key != group.key]
    return _in_order(made)


def dependency(before: Sequence[str], group: Group | SubmittedJob) -> str:
    """The dependency of a group on other jobs, for sbatch (ids of arrays or elements); empty without any."""
    kind = "afterany" if group.takes_what_is_there else "afterok"
    return f"{kind}:{':'.join(before)}" if before else ""


def _waves(graph: Graph) -> dict[str, int]:
    """Unit -> its wave: units whose payload is deleted after use, one after another, each with its readers."""
    waves: dict[str, int] = {}
    discarded = [name for name in graph.order if graph.units[name].retention == "discard"]
    for wave, source in enumerate(discarded):
        waves[source] = wave
        for reader in graph.consumers[source]:
            if graph.units[reader].phase.reads_payload:
                waves[reader] = wave
    return waves


def _in_order(groups: Sequence[Group]) -> list[Group]:
    """The groups, each after those it depends on."""
    left, placed, ordered = list(groups), set[str](), list[Group]()
    while left:
        ready = next((group for group in left if set(group.after) <= placed), None)
        assert ready is not None, f"phases wait for each other: {[group.key for group in left]}"
        left.remove(ready)
        placed.add(ready.key)
        ordered.append(ready)
    return ordered


def sparse(indices: Collection[int]) -> str:
    """``0-3,7`` of 0, 1, 2, 3, 7: as ``--array`` takes them."""
    parts: list[list[int]] = []
    for index in sorted(set(indices)):
        if parts and index == parts[-1][-1] + 1:
            parts[-1][1:] = [index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)


def script_of(frozen: Frozen, group: Group, tasks: Collection[int], comment: str) -> str:
    """The text of a group's script.

    Args:
        tasks: indices of ``group.units`` that are to run.
        comment: kept with the job in Slurm; it identifies the run.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    config = frozen.slurm.of_phase(group.phase)
    python = "python" if config.activate is not None else shlex.quote(sys.executable)  # of the activated environment
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
        activation_failed=shlex.quote(f"compute.slurm.activate failed: {config.activate}"),
        refusals=shlex.quote(str((frozen.run / SLURM / REFUSALS).resolve())),
        version=shlex.quote(__version__),
        python=python,
        environment={name: shlex.quote(os.environ[name]) for name in _HANDED_ON if os.environ.get(name)},
        mechstudy=f"{python} -m mechstudy",
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
    log = f"{pattern_safe(frozen.run.resolve() / SLURM / LOGS)}/{group.phase}-%A_%a.log"
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
        f'--output="{log}"' if any(c in log for c in " '#") else f"--output={log}",
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
    folder = activate.startswith(("/", "~", ".")) and len(activate.split()) == 1 and activate != "."
    is_program = folder and Path(activate).expanduser().is_file()
    # A folder may be on the nodes alone.
    return f"source {shlex.quote(str(script))}" if script.is_file() or (folder and not is_program) else activate


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
