"""Several processes that share each batch of one training: what they must agree on, and nothing else."""

from __future__ import annotations

import atexit
import os

import torch
from torch import Tensor


class Team:
    """Rows of a batch spread over processes. This one is a process alone; `TorchTeam` speaks torch.distributed.

    Sums run in the order of ranks on every process alike, so that all of them keep the same weights.
    """

    rank = 0
    size = 1

    def share(self, n_rows: int) -> slice:
        """The rows of a batch that are this process'."""
        return slice(n_rows * self.rank // self.size, n_rows * (self.rank + 1) // self.size)

    def sum(self, *tensors: Tensor) -> None:
        """Make every tensor its sum over processes, in place."""

    def total(self, number: float) -> float:
        """The sum of a number over processes."""
        return number

    def any(self, flag: bool) -> bool:
        """Whether it holds for any process; all of them get the same answer."""
        return bool(self.total(float(flag)))

    def first(self, flag: bool) -> bool:
        """What the first process says; all of them get it."""
        return bool(self.total(float(flag and self.rank == 0)))

    def gather(self, values: Tensor) -> list[Tensor]:
        """Every process' values [M_rank], by rank."""
        return [values]

    def wait(self) -> None:
        """Until every process is here."""


class TorchTeam(Team):
    """The processes of torch.distributed's default group (gloo on CPUs, NCCL on GPUs), started by torchrun."""

    def __init__(self) -> None:
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def sum(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)

    def total(self, number: float) -> float:
        return float(torch.stack(self.gather(torch.tensor([number], dtype=torch.float64))).sum())

    def gather(self, values: Tensor) -> list[Tensor]:
        values = values.contiguous()
        counts = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(self.size)]
        torch.distributed.all_gather(counts, torch.tensor([len(values)], device=values.device))
        longest = max(int(count) for count in counts)
        padded = values.new_zeros(longest)
        padded[: len(values)] = values
        found = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(found, padded)
        return [part[: int(count)] for part, count in zip(found, counts, strict=True)]

    def wait(self) -> None:
        torch.distributed.barrier()


ALONE = Team()


def current_team() -> Team:
    """The processes that torchrun started this one with; else this process alone.

    A process group that the caller has initialised is used as it is.
    """
    distributed = torch.distributed
    if not distributed.is_available():
        return ALONE
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "MASTER_ADDR" not in os.environ:
            return ALONE
        device = "cuda" if torch.cuda.is_available() else "cpu"
        distributed.init_process_group(backend(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        atexit.register(_leave)
    return TorchTeam() if distributed.get_world_size() > 1 else ALONE


def backend(device: str, n_here: int) -> str:
    """How ``n_here`` processes of one machine talk: gloo, and NCCL for what is on GPUs, which wants one for each."""
    gpus = torch.cuda.device_count() if torch.device(device).type == "cuda" else 0
    return "cpu:gloo,cuda:nccl" if gpus >= n_here and gpus else "gloo"


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
