"""A study file, and its run in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mechstudy.api.runs import Run, open_run
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Progress
from mechstudy.planning.opened_study import OpenedStudy, open_study
from mechstudy.runner.study_run import execute
from mechstudy.study import study as study_file


class Study:
    """A study file, checked; `run` computes what its run folder does not have yet."""

    def __init__(self, opened: OpenedStudy) -> None:
        self._opened = opened

    @classmethod
    def load(
        cls,
        file: str | Path,
        overrides: Sequence[str] = (),
        *,
        out: str | Path | None = None,
        say: Callable[[str], None] = print,
    ) -> Study:
        """Read a study file, and fetch its model where it is not here yet.

            ms.Study.load("study.yaml").run()
            ms.Study.load("study.yaml", ["dictionaries.layers=10-12"], out="runs/few").run()

        Args:
            file: see examples/demo.yaml.
            overrides: ``key=value``, as the command line's ``--set``.
            out: the run's folder; by default ``runs/<name>`` in the current folder.
            say: receives notes.

        Raises:
            MechstudyError: a mistake in the study, at its file and line.
        """
        return cls(open_study(Path(file), overrides, out=None if out is None else Path(out), fetch=True, say=say))

    @property
    def config(self) -> study_file.Study:
        """Every field of the study, defaults included."""
        return self._opened.study

    @property
    def units(self) -> list[str]:
        """Names of the units it is made of, in order."""
        return [unit.name for unit in self._opened.units]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._opened.folder

    def run(self, targets: Sequence[str] | None = None, *, progress: Progress | None = None, **options: Any) -> Run:
        """Run the units that are not finished; an interrupted run resumes.

        Args:
            targets: names of units, which run with the units they need; by default all.
            progress: receives messages; by default they are printed.
            options: of ``compute`` in the study file, such as ``device="cpu"`` or ``max_parallel=2``.

        Returns:
            The run, as `open_run` gives it.

        Raises:
            MechstudyError: a unit failed; every other unit that could run has run.
        """
        result = execute(self._opened, targets, progress=progress, **options)
        if result.failures:
            failed = {failure.name: str(failure.error or failure.crash) for failure in result.failures}
            raise MechstudyError(
                f"{len(failed)} of {len(result.units)} units failed",
                where=str(self.folder),
                facts=failed,
                fix="fix the cause and run again: finished units are kept",
            )
        return open_run(self.folder)

    def __repr__(self) -> str:
        return f"Study {self.config.name}: {len(self.units)} units in {self.folder}"
