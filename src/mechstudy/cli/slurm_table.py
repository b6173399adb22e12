"""Output of `submit --dry-run`: the job arrays as a table, then the commands that would submit them."""

from __future__ import annotations

from rich.text import Text

from mechstudy.cli.show import console, table
from mechstudy.runner import slurm
from mechstudy.study.slurm_config import SlurmConfig


def show_dry_run(asked: slurm.Asked, result: slurm.Result) -> None:
    """Prints the arrays, the commands, the scripts' folder, and the next command."""
    if not result.shown:
        print(f"nothing to submit: {result.done} units are done")
        return
    arrays = table("array", "~units", "~after", "~asks for")
    implied: dict[str, set[str]] = {}  # array -> all arrays before it; only the last of them are shown
    for shown in result.shown:
        before = [key for key in shown.after if not any(key in implied[other] for other in shown.after)]
        implied[shown.group.key] = {*shown.after}.union(*(implied[key] for key in shown.after))
        wait = ("the end of " if shown.group.takes_what_is_there else "") + ", ".join(before)
        n = len(shown.tasks)
        units = f"{n}: {', '.join(shown.tasks)}" if n > 1 else str(n)
        arrays.add_row(Text(shown.group.key), Text(units), Text(wait if before else "-"), Text(_asks(shown.asked)))
    console().print(arrays)
    for shown in result.shown:
        print(shown.command)
    n_units = sum(len(shown.tasks) for shown in result.shown)
    print(f"\n{n_units} units in {len(result.shown)} jobs; nothing was submitted")
    print(f"scripts: {result.shown[0].script.parent}")
    print(f"cost:    {asked.opened.command('plan')}")
    profile = () if asked.profile is None else ("--profile-name", asked.profile)
    print(f"next:    {asked.opened.command('submit', *profile)}")


def _asks(asked: SlurmConfig) -> str:
    """``partition gpu, gpus 1, memory 64G, time 04:00:00``."""
    names = ("partition", "account", "qos", "gpus", "cpus", "memory", "time", "concurrent")
    fields = [f"{name} {getattr(asked, name)}" for name in names if getattr(asked, name) is not None]
    return ", ".join([*fields, *asked.extra]) or "the cluster's defaults"
