"""Any tensors as training rows: for notebooks, and for activations that come from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.core.seeds import torch_generator
from mechstudy.dictionaries.initialise import statistics_rows

Batch = Tensor | tuple[Tensor, Tensor]


class TensorRows:
    """Rows held in memory, in a new order every epoch.

    Args:
        x_ND: inputs [N, d_in].
        y_ND: targets [N, d_out]; None: the inputs themselves.
        seed: of the orders.
    """

    def __init__(self, x_ND: Tensor, y_ND: Tensor | None = None, *, batch_size: int = 2_048, seed: int = 0) -> None:
        if x_ND.ndim != 2 or not len(x_ND):
            raise MechstudyError(f"rows are [N, d_in], not {list(x_ND.shape)}", fix="x.flatten(0, -2)")
        if y_ND is not None and (y_ND.ndim != 2 or len(y_ND) != len(x_ND)):
            raise MechstudyError(
                f"{len(x_ND)} inputs, but targets {list(y_ND.shape)}", fix="one target for every input"
            )
        self.x, self.y = x_ND, x_ND if y_ND is None else y_ND
        self.batch_size, self.seed = min(batch_size, len(x_ND)), seed
        self.d_in, self.d_out = self.x.shape[1], self.y.shape[1]

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of steps ``start``, ``start + 1``, ..., for ever; an epoch's last rows that fill none are left."""
        per_epoch = len(self.x) // self.batch_size
        epoch, within = divmod(start, per_epoch)
        while True:
            order = torch.randperm(len(self.x), generator=torch_generator(self.seed, "rows", f"order of epoch {epoch}"))
            for first in range(within * self.batch_size, per_epoch * self.batch_size, self.batch_size):
                rows = order[first : first + self.batch_size]
                x = self.x[rows].float()
                yield x, x if self.y is self.x else self.y[rows].float()
            epoch, within = epoch + 1, 0


class IterableRows:
    """Batches from an iterable of tensors [..., d] or pairs of them, cut into batches of one size, in its order.

    What can be iterated anew (a list, a DataLoader) starts over when it ends; an iterator or generator does not. A
    killed training resumes only on what can be iterated anew.
    """

    def __init__(self, batches: Iterable[Batch], *, batch_size: int = 2_048) -> None:
        self.batch_size = batch_size
        self._source = batches
        self._once = iter(batches) is batches
        self._rest = _cut(batches, batch_size) if self._once else iter(())
        self._held: list[tuple[Tensor, Tensor]] = []  # an iterator's first batches, which the statistics read too
        first = next(iter(self.batches()), None)
        if first is None:
            raise MechstudyError("there are not enough rows for one batch", facts={"batch_size": str(batch_size)})
        self.d_in, self.d_out = first[0].shape[1], first[1].shape[1]

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of steps ``start``, ``start + 1``, ...; ends where an iterator ends."""
        if not self._once:
            return self._again(start)
        if start:
            raise MechstudyError("an iterator cannot be resumed", fix="give a list, a DataLoader or a store")
        return self._only_time()

    def _only_time(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._held
        for x, y in self._rest:
            if len(self._held) * self.batch_size < statistics_rows(x.shape[1], with_skip=True):
                self._held.append((x, y))
            yield x, y

    def _again(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        def for_ever() -> Iterator[Batch]:
            some = True
            while some:
                some = False
                for batch in self._source:
                    some = some or bool((batch if isinstance(batch, Tensor) else batch[0]).numel())
                    yield batch

        batches = _cut(for_ever(), self.batch_size)
        for _ in range(start):
            next(batches)
        yield from batches


def _cut(batches: Iterable[Batch], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of exactly ``size`` rows, float32."""
    left: tuple[Tensor, Tensor] | None = None
    for batch in batches:
        x, y = (batch, batch) if isinstance(batch, Tensor) else batch
        same = y is x
        x = x.reshape(-1, x.shape[-1]).float()
        y = x if same else y.reshape(-1, y.shape[-1]).float()
        if left is not None and len(left[0]):
            x = torch.cat([left[0], x])
            y = x if same else torch.cat([left[1], y])
        whole = len(x) // size * size
        for first in range(0, whole, size):
            part = x[first : first + size]
            yield part, part if same else y[first : first + size]
        left = (x[whole:], y[whole:])


def rows_of(source: Any, batch_size: int, seed: int = 0, n_sites: int = 1) -> Any:
    """A row source from a tensor, a pair of tensors, an iterable of either, or what is one already.

    ``n_sites``: tensors [N, n_sites, d] become rows with their sites side by side.
    """
    if hasattr(source, "batches"):
        return source
    if n_sites > 1:
        if isinstance(source, Tensor):
            source = _side_by_side(source, n_sites)
        elif isinstance(source, tuple):
            source = tuple(_side_by_side(part, n_sites) if isinstance(part, Tensor) else part for part in source)
    if isinstance(source, Tensor):
        return TensorRows(source, batch_size=batch_size, seed=seed)
    if isinstance(source, tuple) and len(source) == 2 and all(isinstance(part, Tensor) for part in source):
        return TensorRows(*source, batch_size=batch_size, seed=seed)
    if isinstance(source, Iterable):
        return IterableRows(source, batch_size=batch_size)
    raise MechstudyError(
        f"a {type(source).__name__} holds no rows", fix="a tensor [N, d], a pair (x, y), or an iterable of them"
    )


def _side_by_side(rows: Tensor, n_sites: int) -> Tensor:
    return rows.flatten(1) if rows.ndim == 3 and rows.shape[1] == n_sites else rows
