"""The meeting place of ranks that exchange tensors: torch.distributed's default group, for one share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechstudy.runner.processes.torchrun import shared_store

FILE, STORE = "file:", "store:"


def meeting_place() -> str:
    """A new file at which the ranks of this machine meet."""
    return f"{FILE}{Path(tempfile.mkdtemp(prefix='mechstudy-ranks-')) / 'meeting'}"


def leave(group: str) -> None:
    """Deletes a meeting place."""
    if group.startswith(FILE):
        shutil.rmtree(Path(group.removeprefix(FILE)).parent, ignore_errors=True)


@contextmanager
def joined(group: str, rank: int, size: int, device: str) -> Iterator[None]:
    """Makes this process a member of torch.distributed's default group while the block runs."""
    import torch

    from mechstudy.dictionaries.training.data_parallel import backend

    if group.startswith(FILE) and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: its name need not resolve
    torch.distributed.init_process_group(backend(device, size), store=_store(group, size), rank=rank, world_size=size)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _store(group: str, size: int) -> Any:
    import torch

    distributed: Any = torch.distributed
    if group.startswith(FILE):
        return distributed.FileStore(group.removeprefix(FILE), size)
    return distributed.PrefixStore(group.removeprefix(STORE), shared_store())
