"""Row sources from tensors, arrays and iterables, and held-out rows for evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.core.seeds import torch_generator
from mechstudy.dictionaries.arrays import Array, as_tensor, flat, is_array, pair, targets_missing
from mechstudy.dictionaries.sizes import statistics_rows

Batch = Array | tuple[Array, Array] | list[Array]
_PIECE = 4_096  # rows of one tensor evaluated at a time


class TensorRows:
    """Rows in memory, in a new order every epoch.

    Args:
        x_ND: inputs [N, d_in].
        y_ND: targets [N, d_out]; None: the inputs.
        batch_size: rows of a batch.
        seed: of the orders.

    Raises:
        MechstudyError: other shapes, integers, or fewer rows than one batch.
    """

    def __init__(self, x_ND: Array, y_ND: Array | None = None, *, batch_size: int = 2_048, seed: int = 0) -> None:
        x = as_tensor(x_ND)
        y = x if y_ND is None or y_ND is x_ND else as_tensor(y_ND)
        for name, rows, width in (("rows", x, "d_in"), ("targets", y, "d_out")):
            if rows.ndim != 2:
                raise MechstudyError(f"{name} are [N, {width}], not {list(rows.shape)}", fix="rows.flatten(0, -2)")
        if len(y) != len(x):
            raise MechstudyError(f"{len(x)} inputs, but targets {list(y.shape)}", fix="one target for every input")
        if len(x) < batch_size:
            raise _too_few(batch_size, len(x))
        self.x, self.y = x, y
        self.batch_size, self.seed = batch_size, seed
        self.d_in, self.d_out = self.x.shape[1], self.y.shape[1]

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of steps ``start``, ``start + 1``, ..., without end; an epoch's last incomplete batch is left out."""
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
    """Batches of one size from an iterable of tensors or arrays [..., d] or pairs of them, in its order.

    A source that can be iterated again (a list, a DataLoader) starts over when it ends; an iterator or generator does
    not, and a killed training cannot resume on it.

    Args:
        batches: the iterable.
        batch_size: rows of a batch.
        n_sites: batches are [..., n_sites, d], whose sites are put side by side.
        needs_targets: refuse batches without targets.

    Raises:
        MechstudyError: fewer rows than one batch, or batches that do not hold rows (named by number).
    """

    def __init__(
        self, batches: Iterable[Batch], *, batch_size: int = 2_048, n_sites: int = 1, needs_targets: bool = False
    ) -> None:
        self.batch_size = batch_size
        self._source, self._n_sites, self._needs_targets = batches, n_sites, needs_targets
        self.once = iter(batches) is batches
        self._rest = self._cut(batches) if self.once else iter(())
        self._held: list[tuple[Tensor, Tensor]] = []  # an iterator's first batches, read by the statistics and again
        first = next(self._once() if self.once else self._cut(batches), None)
        if first is None:
            raise _too_few(batch_size)
        self.d_in, self.d_out = first[0].shape[1], first[1].shape[1]

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of steps ``start``, ``start + 1``, ...; ends where an iterator ends."""
        if not self.once:
            return self._again(start)
        if start:
            raise cannot_resume()
        return self._once()

    def _once(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._held
        for x, y in self._rest:
            if len(self._held) * self.batch_size < statistics_rows(x.shape[1], with_skip=True):
                self._held.append((x, y))
            yield x, y

    def _again(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        def repeated() -> Iterator[Batch]:
            empty = False
            while not empty:
                empty = True
                for batch in self._source:
                    empty = False
                    yield batch

        batches = self._cut(repeated())
        for _ in range(start):
            next(batches)
        yield from batches

    def _cut(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of exactly ``batch_size`` rows, float32."""
        left: tuple[Tensor, Tensor] | None = None
        size = self.batch_size
        for number, batch in enumerate(batches):
            where = f"batch {number}"
            x, y = pair(batch, self._n_sites, needs_targets=self._needs_targets, where=where)
            same = y is x
            x = x.float()
            y = x if same else y.float()
            if left is not None:
                for name, rows, before in (("inputs", x, left[0]), ("targets", y, left[1])):
                    if rows.shape[1] != before.shape[1]:
                        raise MechstudyError(
                            f"the {name} are {rows.shape[1]} wide, those of the batches before {before.shape[1]}",
                            where=where,
                            fix="rows of one site, or of sites of one width",
                        )
                if len(left[0]):
                    x = torch.cat([left[0], x])
                    y = x if same else torch.cat([left[1], y])
            whole = len(x) // size * size
            for first in range(0, whole, size):
                part = x[first : first + size]
                yield part, part if same else y[first : first + size]
            left = (x[whole:], y[whole:])


class FirstBatches:
    """The first ``n_batches`` batches of what ``begin()`` iterates over, as often as they are iterated."""

    def __init__(self, begin: Callable[[], Iterator[tuple[Tensor, Tensor]]], n_batches: int) -> None:
        self._begin, self._n_batches = begin, n_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(self._begin(), self._n_batches)


class HeldOut:
    """Held-out rows as batches (inputs [n, d_in], targets [n, d_out]) that can be iterated repeatedly.

    Args:
        source: a tensor or NumPy array, a pair (inputs, targets), or an iterable of either; an iterator's batches are
            kept in memory.
        widths: of the inputs and targets, their sites side by side.
        n_sites: sites that a row holds.
        needs_targets: refuse inputs alone.

    Raises:
        MechstudyError: it is none of these; while iterating, a batch without rows or of another width.
    """

    def __init__(self, source: Any, *, widths: tuple[int, int], n_sites: int = 1, needs_targets: bool = False) -> None:
        if is_array(source) or _is_pair(source):
            x, y = pair(source, n_sites, needs_targets=needs_targets, widths=widths)
            source = list(zip(torch.split(x, _PIECE), torch.split(y, _PIECE), strict=True))
        elif hasattr(source, "batches"):
            raise MechstudyError(
                f"a {type(source).__name__} never ends", fix="itertools.islice(source.batches(), n) of it"
            )
        else:
            _refuse_no_rows(source)
            source = list(source) if iter(source) is source else source
        self._source, self._widths, self._n_sites, self._needs_targets = source, widths, n_sites, needs_targets

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(self._source):
            where = f"batch {number}"
            x, y = pair(
                batch, self._n_sites, needs_targets=self._needs_targets, widths=self._widths, where=where
            )  # fmt: skip
            for name, rows, width in (("inputs", x, self._widths[0]), ("targets", y, self._widths[1])):
                if rows.shape[1] != width:
                    raise MechstudyError(
                        f"the {name} are {rows.shape[1]} wide, but this dictionary "
                        f"{'reads' if name == 'inputs' else 'writes'} {width}",
                        where=where,
                        fix="rows of the site it was trained on",
                    )
            yield x, y


def rows_of(source: Any, batch_size: int, seed: int = 0, n_sites: int = 1, *, needs_targets: bool = False) -> Any:
    """A row source from a tensor or NumPy array, a pair of them, or an iterable of either; or the row source itself.

    Args:
        source: the rows.
        batch_size: rows of a batch.
        seed: of the order of rows in memory.
        n_sites: [N, n_sites, d] become rows with their sites side by side.
        needs_targets: refuse inputs alone.

    Raises:
        MechstudyError: it holds no rows, too few for one batch, or rows of another number of sites.
    """
    if hasattr(source, "batches"):
        return source
    if is_array(source) or _is_pair(source):
        parts = [source] if is_array(source) else list(source)
        if len(parts) == 1 and needs_targets:
            raise targets_missing()
        if n_sites > 1:
            parts = [flat(part, n_sites) for part in parts]
        return TensorRows(*parts, batch_size=batch_size, seed=seed)
    _refuse_no_rows(source)
    return IterableRows(source, batch_size=batch_size, n_sites=n_sites, needs_targets=needs_targets)


def cannot_resume() -> MechstudyError:
    """The error for a checkpoint of a training on an iterator."""
    return MechstudyError(
        "an iterator cannot be resumed: batches read before a kill are gone",
        fix="a list, a tensor, a DataLoader or a store; or train without checkpoint",
    )


def _is_pair(source: object) -> bool:
    return isinstance(source, tuple) and len(source) == 2 and all(map(is_array, source))


def _refuse_no_rows(source: object) -> None:
    """Raise for objects that are not iterable, and for text and mappings, which are but hold no rows."""
    if isinstance(source, Iterable) and not isinstance(source, str | bytes | os.PathLike | Mapping):
        return
    fix = "a tensor or NumPy array [N, d], a pair (inputs, targets) of them, or an iterable of either"
    if isinstance(source, str | os.PathLike):
        fix = f"what is in it: safetensors.torch.load_file({os.fspath(source)!r})[name], torch.load or numpy.load"
    elif isinstance(source, Mapping):
        fix = f"one of its values: source[{next(iter(source), 'name')!r}]"
    raise MechstudyError(f"a {type(source).__name__} holds no rows", fix=fix)


def _too_few(batch_size: int, n_rows: int | None = None) -> MechstudyError:
    counted = {} if n_rows is None else {"rows": f"{n_rows:,}"}
    return MechstudyError(
        "there are not enough rows for one batch",
        facts={**counted, "batch_size": f"{batch_size:,}"},
        fix="more rows, or a smaller TrainConfig.batch_size",
    )
