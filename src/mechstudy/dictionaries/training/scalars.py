"""Log of training scalars: JSON lines, and TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

SCALARS = "scalars.jsonl"


class ScalarLog:
    """Appends to `<folder>/scalars.jsonl` and optionally to `<folder>/tensorboard/`.

    Args:
        folder: created if it does not exist.
        tensorboard: whether to write TensorBoard's events.
        start_step: a resumed run's first step. Later lines, written after the checkpoint by a killed run, are deleted,
            so that each step is in the file once.
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
        """Flush and close TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()


def training_time(folder: Path, n_rows: int) -> dict[str, float]:
    """train_seconds and rows_per_second of a finished training of `n_rows` rows, from its ``scalars.jsonl``."""
    seconds = float(json.loads((folder / SCALARS).read_text().splitlines()[-1])["seconds"])
    return {"train_seconds": seconds, "rows_per_second": n_rows / seconds if seconds > 0 else 0.0}


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut short by a kill
        return math.inf
