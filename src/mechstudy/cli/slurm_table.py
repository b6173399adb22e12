"""What `submit --dry-run` prints: the arrays as a table, then what would be typed to submit them."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mechstudy.cli.show import console
from mechstudy.runner.slurm.submit import Asked, Result
from mechstudy.study.slurm_config import SlurmConfig


def show_dry_run(asked: Asked, result: Result) -> None:
    """The arrays, the commands, where the scripts are, and what to do next."""
    if not result.shown:
        print(f"nothing to submit: {result.done} units are done")
        return
    out = console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("array", no_wrap=True)
    for name in ("units", "after", "asks for"):
        table.add_column(name, overflow="fold")
    implied: dict[str, set[str]] = {}  # array -> all that come before it; only the last of them are shown
    for shown in result.shown:
        before = [key for key in shown.after if not any(key in implied[other] for other in shown.after)]
        implied[shown.group.key] = {*shown.after}.union(*(implied[key] for key in shown.after))
        wait = ("the end of " if shown.group.takes_what_is_there else "") + ", ".join(before)
        n = len(shown.tasks)
        units = f"{n}: {', '.join(shown.tasks)}" if n > 1 else str(n)
        table.add_row(Text(shown.group.key), Text(units), Text(wait if before else "-"), Text(_asks(shown.asked)))
    out.print(table)
    for shown in result.shown:
        print(shown.command)
    units_ = sum(len(shown.tasks) for shown in result.shown)
    print(f"\n{units_} units in {len(result.shown)} jobs; nothing was submitted")
    print(f"scripts: {result.shown[0].script.parent}")
    print(f"cost:    {asked.opened.command('plan')}")
    profile = () if asked.profile is None else ("--profile-name", asked.profile)
    print(f"next:    {asked.opened.command('submit', *profile)}")


def _asks(asked: SlurmConfig) -> str:
    """``partition gpu, gpus 1, memory 64G, time 04:00:00``."""
    fields = ("partition", "account", "qos", "gpus", "cpus", "memory", "time", "concurrent")
    given = [f"{name} {getattr(asked, name)}" for name in fields if getattr(asked, name) is not None]
    return ", ".join([*given, *asked.extra]) or "what the cluster gives"
