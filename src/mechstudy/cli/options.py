"""Arguments and options that several commands share, and the exit statuses of errors."""

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

from mechstudy.core.errors import MechstudyError
from mechstudy.core.signals import Interrupted, Terminated

STUDY_PANEL = "Study"
PHASE_PANEL = "Phase"

_study = functools.partial(typer.Option, rich_help_panel=STUDY_PANEL)
_compute = functools.partial(typer.Option, rich_help_panel="Execution (never changes results)")

_STUDY_HELP = "The study file, for example [cyan]study.yaml[/]; `mechstudy init` writes one."
_SET_HELP = (
    "Override a field of the study; repeatable. [dim]--set corpus.tokens=500000 --set behaviours.0.n_test=50[/] "
    "Relative paths start at the study file's folder."
)
_WORLD_SIZE_HELP = (
    "Processes that share the work of one unit, each with its part of the threads, and with its own GPU where there "
    "are several; overrides compute.world_size."
)
_OUT_HELP = "The run's folder. Default: runs/<name of the study> in the current folder."
_PROFILE_HELP = "Record the first steps of each unit with torch's profiler: a trace and a table in <run>/profile/."
_SNAPSHOT_HELP = "Record each unit's memory at its peak, in <run>/profile/; on a GPU in the format of torch's viewer."
_HARDWARE_HELP = "a100-40gb, a100-80gb, h100, or your own YAML file. Default: compute.hardware, else this machine."

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help=_STUDY_HELP)]
Sets = Annotated[list[str] | None, _study("--set", metavar="KEY=VALUE", help=_SET_HELP)]
Out = Annotated[Path | None, _study(metavar="DIR", help=_OUT_HELP)]
Device = Annotated[str | None, _compute(help="auto, cpu, cuda or cuda:1; overrides compute.device.")]
Threads = Annotated[int | None, _compute(min=1, help="CPU threads in total; overrides compute.threads.")]
WorldSize = Annotated[int | None, _compute(min=1, metavar="N", help=_WORLD_SIZE_HELP)]
Profile = Annotated[bool, _compute("--profile", help=_PROFILE_HELP)]
MemorySnapshot = Annotated[bool, _compute("--memory-snapshot", help=_SNAPSHOT_HELP)]
HardwareName = Annotated[str | None, typer.Option("--hardware", metavar="NAME", help=_HARDWARE_HELP)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

_RESUMABLE: list[bool] = []  # not empty while a command runs units
F = TypeVar("F", bound=Callable[..., Any])


def say(message: str) -> None:
    """Prints a line on standard error."""
    print(message, file=sys.stderr, flush=True)


RecordedFeatures = Annotated[
    list[str] | None,
    typer.Option("--features", metavar="LAYER/FEATURE", help="Repeatable. Default: all that the run recorded."),
]
MostFeatures = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="N", help="So many features at most, those of largest influence."),
]


def guarded(command: F) -> F:
    """Turns errors into exit statuses: 2 for a user error, without traceback, 130 for Ctrl-C, 143 for SIGTERM.

    Units that stopped at a safe point are listed.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        _RESUMABLE.clear()
        try:
            with _terminable():
                return command(*args, **kwargs)
        except MechstudyError as error:
            if os.environ.get("MECHSTUDY_DEBUG"):
                raise
            say(f"error: {error}")
            raise SystemExit(2) from None
        except Interrupted as stop:
            for name, saved in stop.saved.items():
                say(f"{name}: stopped, {saved} saved")
            units_run()
            _say_how_to_resume()
            raise SystemExit(128 + stop.number) from None
        except KeyboardInterrupt as interruption:
            _say_how_to_resume()
            raise SystemExit(143 if isinstance(interruption, Terminated) else 130) from None
        except BrokenPipeError:  # the reader of our output has ended, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None

    return run  # type: ignore[return-value]  # same signature


def units_run() -> None:
    """Notes that this command runs units, which the same command resumes after a stop."""
    _RESUMABLE.append(True)


def _say_how_to_resume() -> None:
    if not _RESUMABLE:
        say("\nstopped")
        return
    say("\nstopped; finished units are kept, and the same command resumes the others:")
    say(f"  {shlex.join(['mechstudy', *sys.argv[1:]])}")


@contextmanager
def _terminable() -> Iterator[None]:
    """Within it, SIGTERM stops as cleanly as Ctrl-C."""

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
    """All overrides of the study: those of ``--set``, then those of the flags."""
    flags = {"device": device, "threads": threads, "world_size": world_size}
    return [*(sets or []), *(f"compute.{name}={value}" for name, value in flags.items() if value)]
