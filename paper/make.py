"""Make the paper from a finished run: `python -m paper.make runs/demo`.

Numbers, figures, the text and the PDF are written to one folder, which compiles on its own.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typst

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import write_json_atomic
from mechstudy.report.figures import FONTS
from paper.figures import draw
from paper.finished import FinishedRun
from paper.numbers import run_numbers
from paper.statements import statements
from paper.stored import stored_numbers

HERE = Path(__file__).parent
SOURCES = ("paper.typ", "template.typ", "tables.typ", "references.bib")
OUT = HERE.parent / "build" / "paper"


@dataclass(frozen=True)
class Paper:
    """A paper that was made.

    Attributes:
        pdf: its file.
        numbers: what ``numbers.json`` beside it holds.
        figures: names of the SVG files in ``figures``.
        warnings: of the compiler.
    """

    pdf: Path
    numbers: dict[str, Any]
    figures: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def not_borne_out(self) -> list[str]:
        """Statements of the text that this run does not bear out; the PDF marks them."""
        return [name for name, holds in self.numbers["statements"].items() if not holds]


def make(run: Path, out: Path = OUT) -> Paper:
    """Write the paper of a finished run.

    Args:
        run: the folder of the run.
        out: the folder to write to.

    Raises:
        MechstudyError: the run lacks something that the paper shows.
    """
    opened = FinishedRun.of(run)
    out.mkdir(parents=True, exist_ok=True)
    numbers = {**run_numbers(opened), "bench": stored_numbers(), "statements": statements(opened)}
    write_json_atomic(out / "numbers.json", numbers)
    figures = draw(opened, out / "figures")
    for name in SOURCES:
        shutil.copyfile(HERE / name, out / name)
    pdf, warnings = compiled(out)
    (out / "paper.pdf").write_bytes(pdf)
    return Paper(out / "paper.pdf", numbers, tuple(figures), warnings)


def compiled(folder: Path) -> tuple[bytes, tuple[str, ...]]:
    """The PDF of a folder that holds the text, its numbers and figures; and what the compiler warns of."""
    pdf, warnings = typst.compile_with_warnings(
        str(folder / SOURCES[0]), root=str(folder), font_paths=[str(FONTS)], ignore_system_fonts=True
    )
    return pdf, tuple(str(warning) for warning in warnings)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; ``arguments`` are by default those of the process."""
    parser = argparse.ArgumentParser(prog="python -m paper.make", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the folder of a finished run, for example runs/demo")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder to write to (default: build/paper)")
    asked = parser.parse_args(arguments)
    try:
        paper = make(asked.run, asked.out)
    except MechstudyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for warning in paper.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for name in paper.not_borne_out:
        print(f"not borne out by this run, and marked in the text: {name}", file=sys.stderr)
    print(paper.pdf)


if __name__ == "__main__":
    main()
