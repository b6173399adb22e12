"""What torchrun set for this process, the key-value store of its ranks, and where ranks meet to exchange tensors.

``torchrun --nproc-per-node 2 -m mechstudy capture study.yaml``: of these processes the first leads, the others are its
workers.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.variables import whole_variable

_CONNECT = timedelta(seconds=60)
_FILE, _STORE = "file:", "store:"
_meetings = count(1)


@dataclass
class Launch:
    """Rank of size, and where the store is (``hosted``: by torchrun itself). ``ended``: the other ranks have ended."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int
    hosted: bool
    ended: bool = False


_launch: Launch | None = None


def launched() -> Launch | None:
    """The launch that `claim` read; None where torchrun started no others, or they have ended."""
    return None if _launch is None or _launch.ended else _launch


def started() -> bool:
    """Whether torchrun started this process."""
    return _launch is not None


def claim(environment: MutableMapping[str, str] = os.environ) -> Launch | None:
    """Takes torchrun's variables out of the environment, where libraries would wait for other ranks.

    Raises:
        MechstudyError: they are not all there, or hold no numbers, as a shell's profile may leave them.
    """
    global _launch
    if _launch is not None or not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
        return _launch
    try:
        size = whole_variable(environment, "WORLD_SIZE", 1, least=1)
        if size > 1:
            _launch = Launch(
                rank=whole_variable(environment, "RANK"),
                size=size,
                local_rank=whole_variable(environment, "LOCAL_RANK", 0),
                local_size=whole_variable(environment, "LOCAL_WORLD_SIZE", size, least=1),
                host=environment["MASTER_ADDR"],
                port=whole_variable(environment, "MASTER_PORT", least=1),
                hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            )
            del environment["RANK"], environment["WORLD_SIZE"]
    except MechstudyError as error:
        raise MechstudyError(
            error.what,
            facts={"read because": "RANK, WORLD_SIZE and MASTER_ADDR are set, as torchrun sets them"},
            fix="unset RANK WORLD_SIZE MASTER_ADDR; or start several processes with torchrun itself",
        ) from None
    return _launch


@cache
def shared_store() -> Any:
    """The store all ranks see."""
    import torch

    distributed: Any = torch.distributed
    assert _launch is not None
    is_master = _launch.rank == 0 and not _launch.hosted
    how = {"is_master": is_master, "timeout": _CONNECT, "wait_for_workers": False}
    try:
        store = distributed.TCPStore(_launch.host, _launch.port, **how)
    except RuntimeError as error:
        raise MechstudyError(
            "the ranks of this run do not find one another",
            where=f"{_launch.host}:{_launch.port}",
            facts={"reason": str(error).splitlines()[0]},
            fix="start it with torchrun, or without: --world-size N starts ranks itself",
        ) from error
    return distributed.PrefixStore("mechstudy", store)


def meeting_place() -> str:
    """A new name in torchrun's store, or a new file, at which ranks that exchange tensors meet."""
    if launched() is not None:
        return f"{_STORE}meeting/{next(_meetings)}"
    return f"{_FILE}{Path(tempfile.mkdtemp(prefix='mechstudy-ranks-')) / 'meeting'}"


def leave(place: str) -> None:
    """Deletes a meeting place."""
    if place.startswith(_FILE):
        shutil.rmtree(Path(place.removeprefix(_FILE)).parent, ignore_errors=True)


@contextmanager
def joined(place: str, rank: int, size: int, device: str) -> Iterator[None]:
    """Makes this process a member of torch.distributed's default group while the block runs."""
    import torch

    from mechstudy.dictionaries.training.data_parallel import backend

    distributed: Any = torch.distributed
    if place.startswith(_FILE):
        if Path("/sys/class/net/lo").exists():
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: its name need not resolve
        store = distributed.FileStore(place.removeprefix(_FILE), size)
    else:
        store = distributed.PrefixStore(place.removeprefix(_STORE), shared_store())
    distributed.init_process_group(backend(device, size), store=store, rank=rank, world_size=size)
    try:
        yield
    finally:
        distributed.destroy_process_group()
