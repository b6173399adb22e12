"""Arguments and options that several commands share, and what turns errors into exit statuses."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

STUDY_PANEL = "The study"
COMPUTE_PANEL = "How it runs (never changes results)"
PHASE_PANEL = "This phase"

StudyFile = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY", help="The study file, for example [cyan]study.yaml[/]; `mechstudy init` makes one."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a field of the study; repeatable. "
        "[dim]--set corpus.tokens=500000 --set behaviours.0.n_test=50[/] "
        "Paths in it start at the study file's folder.",
        rich_help_panel=STUDY_PANEL,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="The run's folder. Default: runs/<name of the study>, here.", rich_help_panel=STUDY_PANEL
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda or cuda:1; overrides compute.device.", rich_help_panel=COMPUTE_PANEL),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads in all; overrides compute.threads.", rich_help_panel=COMPUTE_PANEL),
]
WorldSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Processes that share the work of one unit, each with its part of the threads, and a GPU of its own where "
        "there are several; overrides compute.world_size.",
        rich_help_panel=COMPUTE_PANEL,
    ),
]
Profile = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Record the first steps of each unit with torch's profiler: a trace and a table in <run>/profile/.",
        rich_help_panel=COMPUTE_PANEL,
    ),
]
MemorySnapshot = Annotated[
    bool,
    typer.Option(
        "--memory-snapshot",
        help="What was in memory at each unit's peak, in <run>/profile/; on a GPU as torch's viewer reads it.",
        rich_help_panel=COMPUTE_PANEL,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

F = TypeVar("F", bound=Callable[..., Any])
INTERRUPTED, TERMINATED = 130, 143


def guarded(command: F) -> F:
    """A user's mistake is printed without a traceback and exits with 2, an interruption with 130, SIGTERM with 143.

    What was stopped at a safe point is said, unit by unit.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        from mechstudy.core.errors import MechstudyError
        from mechstudy.core.signals import Interrupted, Terminated

        try:
            with _terminable():
                return command(*args, **kwargs)
        except MechstudyError as error:
            if os.environ.get("MECHSTUDY_DEBUG"):
                raise
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except Interrupted as stop:
            for name, saved in stop.saved.items():
                print(f"{name}: stopped, {saved} saved", file=sys.stderr)
            _say_how_to_go_on()
            raise SystemExit(128 + stop.number) from None
        except KeyboardInterrupt as interruption:
            _say_how_to_go_on()
            raise SystemExit(TERMINATED if isinstance(interruption, Terminated) else INTERRUPTED) from None
        except BrokenPipeError:  # the reader of our output has gone, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None

    return run  # type: ignore[return-value]  # same signature


def _say_how_to_go_on() -> None:
    again = shlex.join(["mechstudy", *sys.argv[1:]])
    print("\nstopped; what is finished is kept, what was begun is resumed by the same command:", file=sys.stderr)
    print(f"  {again}", file=sys.stderr)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM inside stops as cleanly as Ctrl-C."""
    from mechstudy.core.signals import Terminated

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def overrides(
    sets: list[str] | None, device: str | None = None, threads: int | None = None, world_size: int | None = None
) -> list[str]:
    """All of a command's overrides of the study; what the flags say comes after ``--set``."""
    flags = {"device": device, "threads": threads, "world_size": world_size}
    return [*(sets or []), *(f"compute.{name}={value}" for name, value in flags.items() if value)]
