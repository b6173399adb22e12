"""Process groups for data-parallel training: the sums and decisions that processes sharing a batch agree on."""

from __future__ import annotations

import atexit
import os

import torch
from torch import Tensor


class ProcessGroup:
    """A single process. `TorchProcessGroup` spreads the rows of each batch over several.

    Sums run in the order of ranks in every process, so that all of them keep the same weights.
    """

    rank = 0
    size = 1

    def share(self, n_rows: int) -> slice:
        """The rows of a batch that this process takes."""
        return slice(n_rows * self.rank // self.size, n_rows * (self.rank + 1) // self.size)

    def sum(self, *tensors: Tensor) -> None:
        """Replace every tensor by its sum over processes, in place."""

    def total(self, number: float) -> float:
        """The sum of a number over processes."""
        return number

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; the same answer in all of them."""
        return bool(self.total(float(flag)))

    def first(self, flag: bool) -> bool:
        """The flag of the first process, in all of them."""
        return bool(self.total(float(flag and self.rank == 0)))

    def gather(self, values: Tensor) -> list[Tensor]:
        """The values [M_rank] of every process, by rank."""
        return [values]

    def wait(self) -> None:
        """Wait for every process to get here."""


class TorchProcessGroup(ProcessGroup):
    """The processes of torch.distributed's default group (gloo on CPUs, NCCL on GPUs), started by torchrun."""

    def __init__(self) -> None:
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def sum(self, *tensors: Tensor) -> None:
        """See `ProcessGroup.sum`."""
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)

    def total(self, number: float) -> float:
        """See `ProcessGroup.total`."""
        return float(torch.stack(self.gather(torch.tensor([number], dtype=torch.float64))).sum())

    def gather(self, values: Tensor) -> list[Tensor]:
        """See `ProcessGroup.gather`."""
        values = values.contiguous()
        counts = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(self.size)]
        torch.distributed.all_gather(counts, torch.tensor([len(values)], device=values.device))
        longest = max(int(count) for count in counts)
        padded = values.new_zeros(longest)
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(parts, padded)
        return [part[: int(count)] for part, count in zip(parts, counts, strict=True)]

    def wait(self) -> None:
        """See `ProcessGroup.wait`."""
        torch.distributed.barrier()


ALONE = ProcessGroup()


def current_process_group() -> ProcessGroup:
    """The group that torchrun started this process in; a single process otherwise.

    A process group that the caller has initialised is used unchanged.
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
    return TorchProcessGroup() if distributed.get_world_size() > 1 else ALONE


def backend(device: str, n_here: int) -> str:
    """torch.distributed's backend for ``n_here`` processes of one machine: gloo, and NCCL if each has its own GPU."""
    gpus = torch.cuda.device_count() if torch.device(device).type == "cuda" else 0
    return "cpu:gloo,cuda:nccl" if gpus >= n_here and gpus else "gloo"


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
