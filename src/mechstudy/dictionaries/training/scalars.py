"""Training scalars: one JSON line per log, and the same in TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

SCALARS = "scalars.jsonl"


class ScalarLog:
    """Appends to `<folder>/scalars.jsonl` and, if asked, to `<folder>/tensorboard/`.

    Args:
        start_step: a resumed run's first step. Lines of later steps, written after the checkpoint by a run
            that died, are dropped, so that each step stands in the file once.
    """

    def __init__(self, folder: Path, *, tensorboard: bool, start_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / SCALARS
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step_of(line) <= start_step] if start_step else []
        self._path.write_text("".join(f"{line}\n" for line in kept))
        self.seconds_before = max((json.loads(line).get("seconds") or 0.0 for line in kept), default=0.0)
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step or None)

    def write(self, step: int, values: dict[str, float | int | None]) -> None:
        """One line; NaN and infinities become null."""
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **clean}) + "\n")
        if self._writer is not None:
            for name, value in clean.items():
                if value is not None:
                    self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut short by a kill
        return math.inf
