"""Accepted inputs: tensors or NumPy arrays, single or in pairs, with several sites stacked or side by side."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError

Array = Tensor | npt.NDArray[Any]


def is_array(value: object) -> bool:
    """Whether a value is a tensor or a NumPy array."""
    return isinstance(value, Tensor | np.ndarray)


def as_tensor(rows: object, where: str | None = None) -> Tensor:
    """The rows as a floating-point tensor, which shares a NumPy array's memory.

    Raises:
        MechstudyError: it is not an array, or one of integers.
    """
    is_numpy = isinstance(rows, np.ndarray)
    if isinstance(rows, np.ndarray):
        try:
            with warnings.catch_warnings():  # torch warns of read-only arrays such as memory maps; rows are only read
                warnings.simplefilter("ignore", UserWarning)
                rows = torch.from_numpy(rows if min(rows.strides, default=0) >= 0 else rows.copy())
        except (TypeError, ValueError) as error:
            raise MechstudyError(
                f"a NumPy array of {rows.dtype} holds no rows", where=where, fix="rows.astype('float32')"
            ) from error
    if not isinstance(rows, Tensor):
        raise MechstudyError(
            f"a {type(rows).__name__} holds no rows",
            where=where,
            fix="a tensor or NumPy array [N, d], or a pair (inputs, targets) of them",
        )
    if not rows.is_floating_point():
        raise MechstudyError(
            f"the rows hold {str(rows.dtype).removeprefix('torch.')}, and activations are floating point numbers",
            where=where,
            fix="rows.astype('float32')" if is_numpy else "rows.float(), if these are activations and not tokens",
        )
    return rows


def rows_like(rows: object, weights: Tensor, where: str | None = None) -> Tensor:
    """The rows in the dtype of ``weights``. A NumPy array moves to their device, a tensor stays on its own.

    Raises:
        MechstudyError: as `as_tensor`.
    """
    tensor = as_tensor(rows, where)
    return tensor.to(weights.dtype) if isinstance(rows, Tensor) else tensor.to(weights)


def flat(rows: object, n_sites: int = 1, *, width: int | None = None, where: str | None = None) -> Tensor:
    """[..., d] -> [N, d]; for several sites [..., n_sites, d] -> [N, n_sites d], or rows ``width`` wide already.

    Raises:
        MechstudyError: it is not an array of activations, or does not hold the sites.
    """
    tensor = as_tensor(rows, where)
    shape = list(tensor.shape)
    if not shape or not shape[-1]:
        raise MechstudyError(f"the rows have shape {shape}: no coordinates", where=where, fix="rows [N, d]")
    if n_sites == 1 or (width is not None and shape[-1] == width):
        return tensor.reshape(-1, shape[-1])
    if len(shape) < 2 or shape[-2] != n_sites:
        raise MechstudyError(
            f"rows of shape {shape} do not hold {n_sites} sites",
            where=where,
            facts={"expected": f"[N, {n_sites}, d]"},
            fix=f"torch.stack(the {n_sites} sites' rows, dim=1); if they are side by side, "
            f"rows.unflatten(-1, ({n_sites}, -1))",
        )
    return tensor.reshape(-1, n_sites * shape[-1])


def pair(
    batch: object,
    n_sites: int = 1,
    *,
    needs_targets: bool = False,
    widths: tuple[int, int] | tuple[None, None] = (None, None),
    where: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One batch as (inputs [N, d_in], targets [N, d_out]); inputs alone are their own targets.

    Args:
        batch: inputs; or a tuple or list of inputs, or of inputs and targets.
        n_sites: sites that a row holds.
        needs_targets: refuse inputs alone.
        widths: of inputs and targets whose sites are side by side already; see `flat`.
        where: the place that errors name.

    Raises:
        MechstudyError: as `flat`; numbers of inputs and targets differ, or targets are missing.
    """
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(parts) not in (1, 2):
        raise MechstudyError(
            f"a batch of {len(parts)} things is no pair", where=where, fix="inputs [N, d], or (inputs, targets)"
        )
    x = flat(parts[0], n_sites, width=widths[0], where=where)
    if len(parts) == 1 and needs_targets:
        raise targets_missing(where)
    if len(parts) == 1 or parts[1] is parts[0]:
        return x, x
    y = flat(parts[1], n_sites, width=widths[1], where=where)
    if len(x) != len(y):
        raise MechstudyError(
            f"{len(x)} inputs, but targets {list(y.shape)}", where=where, fix="one target for every input"
        )
    return x, y


def targets_missing(where: str | None = None) -> MechstudyError:
    """The error for inputs without targets, for a transcoder or clt."""
    return MechstudyError(
        "the targets are missing: a transcoder reads one site and writes another",
        where=where,
        fix="(inputs, targets), or kind: sae, whose targets are its inputs",
    )
