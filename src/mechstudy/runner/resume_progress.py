"""Progress that an unfinished unit can resume from, read from its files without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechstudy.store.artifacts import SCRATCH, ArtifactStore
from mechstudy.study.dag import Node

_LOGS = ("progress.json", "sessions.json", "scalars.jsonl", "timing.json")  # grow although nothing was saved
_CHECKPOINTS = (".safetensors", ".checkpoint")
_TEMPORARY = re.compile(r"\..+\.tmp-\d+")
_STEPS = ("step", "written_rows")
_LARGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class Saved:
    """``steps``: of all checkpoints together (training steps, or captured rows); ``items``: files kept beside them."""

    steps: int = 0
    items: int = 0

    def beyond(self, earlier: Saved) -> bool:
        """Whether more is saved than earlier."""
        return self.steps > earlier.steps or (self.steps == earlier.steps and self.items > earlier.items)

    def __str__(self) -> str:
        texts = [f"step {self.steps:,}" if self.steps else "", f"{self.items} files" if self.items else ""]
        return ", ".join(text for text in texts if text) or "nothing"


def saved_of(store: ArtifactStore, node: Node) -> Saved:
    """The saved progress of a unit."""
    return Saved() if node.id is None else saved(store.partial(*node.key))


def saved(partial: Path | None) -> Saved:
    """The saved progress in a unit's partial folder; nothing where there is none."""
    if partial is None:
        return Saved()
    steps = items = 0
    for path in _files(partial):
        if path.suffix in _CHECKPOINTS and SCRATCH in path.relative_to(partial).parts:
            steps += checkpoint_step(path)
        elif path.name not in _LOGS and "tensorboard" not in path.parts and not _TEMPORARY.fullmatch(path.name):
            items += 1
    return Saved(steps, items)


def checkpoint_step(path: Path) -> int:
    """The step (or row) a checkpoint was written at, from its header alone; 0 where it says none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        with path.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > _LARGEST_HEADER:
                return 0
            state: dict[str, Any] = json.loads(json.loads(opened.read(length))["__metadata__"]["state"])
        return next((int(state[name]) for name in _STEPS if name in state), 0)
    return 0


def _files(folder: Path) -> Iterator[Path]:
    """Regular files at any depth; what disappears meanwhile is left out."""
    with suppress(OSError):
        for path in folder.rglob("*"):
            with suppress(OSError):
                if path.is_file():
                    yield path
