"""Finding a matrix' largest entries on CUDA, with Triton. `kernels.cuda` has the sums, and re-exports these.

A selection reads its matrix [N, F] twice and nothing else of that size. All of it is deterministic: counts are
integers, places are prefix sums, and of equal entries the earliest is taken. NaN counts as larger than everything, so
that a diverged training shows in the codes, not as features that stay silent.

Rows of codes are held as offsets [N+1] int64, features [M] int64 (ascending within a row) and values [M] in the
matrix' dtype.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton's functions take pointers, numbers and constants, which have no Python types.)

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a torch without CUDA comes without Triton; `available` says so
    triton = tl = None

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_WIDEST_K = 1024  # beyond, top_k's candidates do not fit in registers


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or the function itself where Triton is absent, so that this module can be imported."""
    return triton.jit(function) if triton is not None else function


def available() -> bool:
    """Whether these kernels can run: Triton, and a CUDA device or Triton's interpreter (TRITON_INTERPRET=1)."""
    if triton is None:
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    # bfloat16 arithmetic needs Ampere.
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
    """Run a kernel on its first tensor's device; an empty grid is no launch."""
    if 0 in grid:
        return
    first = next(a for a in arguments if isinstance(a, Tensor))
    if not first.is_cuda:  # the interpreter
        kernel[grid](*arguments, **constants)
        return
    with torch.cuda.device(first.device):
        kernel[grid](*arguments, **constants, num_warps=num_warps)


def check(*tensors: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATS) -> None:
    """Raise ValueError for what the kernels would misread: another dtype, or elements that are not side by side."""
    for t in tensors:
        if t.dtype not in dtypes or not t.is_contiguous():
            raise ValueError(f"a contiguous tensor of {dtypes} is needed, not {t.dtype} with strides {t.stride()}")


@jit
def _key(x):
    """int32 that sorts as the float does, -0 as 0 and NaN last; the lowest int32 is no float's key."""
    x = x.to(tl.float32)
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x != x, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@jit
def _middle(low, high):
    """The mean, rounded up; ``low + high`` would overflow."""
    return (low | high) - ((low ^ high) >> 1)


@jit
def _bisect(keys, k, enough):
    """A bound that at least k and at most ``enough`` keys reach; failing that (ties), the k-th largest key."""
    low = tl.min(keys, 0)
    high = tl.max(keys, 0)
    while low < high:
        middle = _middle(low, high)
        count = tl.sum((keys >= middle).to(tl.int32), 0)
        low = tl.where(count >= k, middle, low)
        high = tl.where(count >= k, tl.where(count <= enough, middle, high), middle - 1)
    return low


# ------------------------------------------------------------------------------------- above a bound


@jit
def _is_above(x, low, f, n_features, PER_FEATURE: tl.constexpr):
    bound = tl.load(low + f, mask=f < n_features, other=float("inf")) if PER_FEATURE else low
    return ((x > bound) | (x != x)) & (f < n_features)


@jit
def _count_above(pre, low, counts, n_features, PER_FEATURE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.int32)
    for first in range(0, n_features, BLOCK):
        f = first + tl.arange(0, BLOCK)
        x = tl.load(pre + row * n_features + f, mask=f < n_features, other=0.0).to(tl.float32)
        total += _is_above(x, low, f, n_features, PER_FEATURE).to(tl.int32)
    tl.store(counts + row, tl.sum(total, 0).to(tl.int64))


@jit
def _take_above(pre, low, offsets, features, values, n_features, PER_FEATURE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(offsets + row)
    for first in range(0, n_features, BLOCK):
        f = first + tl.arange(0, BLOCK)
        stored = tl.load(pre + row * n_features + f, mask=f < n_features, other=0.0)
        above = _is_above(stored.to(tl.float32), low, f, n_features, PER_FEATURE)
        at = place + tl.cumsum(above.to(tl.int32), 0) - 1
        tl.store(features + at, f.to(tl.int64), mask=above)
        tl.store(values + at, stored, mask=above)
        place += tl.sum(above.to(tl.int32), 0)


def above(pre_NF: Tensor, low_F: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Entries strictly above a bound, and NaN. Waits for the device once, to know how many they are.

    Args:
        pre_NF: float32, bfloat16 or float16, contiguous.
        low_F: one bound per feature, [F], or one for all. Comparisons are in float32.

    Returns:
        offsets, features (ascending within a row), values in the matrix' dtype.

    Raises:
        ValueError: another dtype or layout.
    """
    low = low_F.float().contiguous() if isinstance(low_F, Tensor) else float(low_F)
    return _take(pre_NF, low, _offsets(pre_NF, low))


def _offsets(pre_NF: Tensor, low: Tensor | float) -> Tensor:
    check(pre_NF)
    n_rows, n_features = pre_NF.shape
    offsets = torch.zeros(n_rows + 1, dtype=torch.int64, device=pre_NF.device)
    counts = offsets.new_empty(n_rows)
    launch(_count_above, (n_rows,), pre_NF, low, counts, n_features, **_blocks(low, n_features))
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets


def _take(pre_NF: Tensor, low: Tensor | float, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n_rows, n_features = pre_NF.shape
    total = int(offsets[-1])
    features, values = offsets.new_empty(total), pre_NF.new_empty(total)
    launch(_take_above, (n_rows,), pre_NF, low, offsets, features, values, n_features, **_blocks(low, n_features))
    return offsets, features, values


def _blocks(low: Tensor | float, n_features: int) -> dict[str, Any]:
    return {"PER_FEATURE": isinstance(low, Tensor), "BLOCK": power_of_two(n_features, 16, 1024)}


def power_of_two(at_least: int, low: int, high: int) -> int:
    """The smallest power of two that is ``at_least`` so large, between two others."""
    return min(max(1 << max(at_least - 1, 0).bit_length(), low), high)


# ----------------------------------------------------------------------------------- the whole matrix


def batch_top_k(pre_NF: Tensor, wanted: int, guess: float | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """The ``wanted`` largest positive entries of the whole matrix (fewer if fewer are positive), exact.

    Of entries equal to the smallest one kept, those in the first rows are taken, lower features first, so the result
    does not depend on ``guess``.

    Args:
        pre_NF: float32, bfloat16 or float16, contiguous.
        guess: about where the smallest of them lies. Entries up to 0.8 of it are looked at only when too few lie
            above. None: all positive entries are.

    Returns:
        offsets, features, values in the matrix' dtype, and the smallest of the values (0.0 of none, NaN if one is).

    Raises:
        ValueError: another dtype or layout.
    """
    low = 0.8 * guess if guess is not None and guess > 0 else 0.0
    offsets = _offsets(pre_NF, low)
    if low > 0 and int(offsets[-1]) < wanted:
        low = 0.0
        offsets = _offsets(pre_NF, low)
    offsets, features, values = _take(pre_NF, low, offsets)
    if len(values) > wanted:
        offsets, features, values = _largest(offsets, features, values, wanted)
    return offsets, features, values, float(values.min()) if len(values) else 0.0


def _largest(offsets: Tensor, features: Tensor, values: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``wanted`` largest of more than that many positive entries, in their order.

    The cut is found digit by digit, highest first: how many entries share the digits so far, by their next digit.
    Nothing waits for the device but bincount.
    """
    numbers = values.float()
    keys = numbers.view(torch.int32).masked_fill(numbers.isnan(), 0x7FFFFFFF)  # positive floats sort like their bits
    cut = keys.new_zeros(())
    ties = torch.full_like(cut, wanted, dtype=torch.int64)  # still to be taken among those that share the digits
    for shift, bits in ((20, 11), (10, 10), (0, 10)):
        digits = (keys >> shift) & ((1 << bits) - 1)
        digits = torch.where((keys >> shift) >> bits == cut, digits, 1 << bits)
        counts = torch.bincount(digits, minlength=(1 << bits) + 1)[:-1].flip(0)
        from_top = counts.cumsum(0)
        n_above = (from_top < ties).sum()  # digits of which all entries are taken
        ties = ties - (from_top - counts)[n_above]
        cut = (cut << bits) | ((1 << bits) - 1 - n_above).to(torch.int32)
    equal = keys == cut
    kept = ((keys > cut) | (equal & (equal.cumsum(0) <= ties))).cumsum(0)
    kept = torch.cat([kept.new_zeros(1), kept])
    place = torch.where(kept.diff() > 0, kept[:-1], wanted)  # what is dropped goes to one place past the end
    taken = [t.new_empty(wanted + 1).scatter_(0, place, t)[:wanted] for t in (features, values)]
    return kept[offsets], taken[0], taken[1]


# ------------------------------------------------------------------------------------------ row by row


@jit
def _find_candidates(
    pre, bounds, found, candidates, n_features, k, GROUPS: tl.constexpr, ROOM: tl.constexpr
):  # fmt: skip
    """A bound that the row's k largest reach, and the first ROOM features that reach it.

    Group g holds features g, g + GROUPS, ...: where k groups' maxima reach a bound, so do k features.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, GROUPS)
    best = tl.full([GROUPS], -0x80000000, tl.int32)
    for first in range(0, n_features, GROUPS):
        inside = first + lane < n_features
        x = tl.load(pre + row * n_features + first + lane, mask=inside, other=0.0)
        best = tl.maximum(best, tl.where(inside, _key(x), -0x80000000))
    bound = _bisect(best, k, 2 * k)
    count = tl.zeros([], tl.int32)
    for first in range(0, n_features, GROUPS):
        inside = first + lane < n_features
        x = tl.load(pre + row * n_features + first + lane, mask=inside, other=0.0)
        hit = inside & (_key(x) >= bound)
        at = count + tl.cumsum(hit.to(tl.int32), 0) - 1
        tl.store(candidates + row * ROOM + at, first + lane, mask=hit & (at < ROOM))
        count += tl.sum(hit.to(tl.int32), 0)
    tl.store(bounds + row, bound)
    tl.store(found + row, count)


@jit
def _write(features, values, f, x, taken, at):
    tl.store(features + at, f.to(tl.int64), mask=taken)
    number = x.to(tl.float32)
    tl.store(values + at, tl.where((number > 0) | (number != number), x, 0.0), mask=taken)


@jit
def _n_reaching(pre, bound, n_features, BLOCK: tl.constexpr):
    reaching = tl.zeros([BLOCK], tl.int32)
    for first in range(0, n_features, BLOCK):
        f = first + tl.arange(0, BLOCK)
        x = tl.load(pre + f, mask=f < n_features, other=0.0)
        reaching += ((f < n_features) & (_key(x) >= bound)).to(tl.int32)
    return tl.sum(reaching, 0)


@jit
def _choose_of_row(pre, cut, features, values, n_features, k, BLOCK: tl.constexpr):
    """As `_choose`, of a whole row, read again for each question; ``cut`` is reached by at least k."""
    high = tl.full([], 0x7FFFFFFF, tl.int32)
    while cut < high:
        middle = _middle(cut, high)
        enough = _n_reaching(pre, middle, n_features, BLOCK) >= k
        cut = tl.where(enough, middle, cut)
        high = tl.where(enough, high, middle - 1)
    # Nothing is above the highest key, and the next one up would overflow.
    ties = k - tl.where(cut < 0x7FFFFFFF, _n_reaching(pre, tl.minimum(cut, 0x7FFFFFFE) + 1, n_features, BLOCK), 0)
    place = tl.zeros([], tl.int32)
    for first in range(0, n_features, BLOCK):
        f = first + tl.arange(0, BLOCK)
        x = tl.load(pre + f, mask=f < n_features, other=0.0)
        keys = tl.where(f < n_features, _key(x), -0x80000000)
        equal = (keys == cut).to(tl.int32)
        taken = (keys > cut) | ((equal > 0) & (tl.cumsum(equal, 0) <= ties))
        _write(features, values, f, x, taken, place + tl.cumsum(taken.to(tl.int32), 0) - 1)
        place += tl.sum(taken.to(tl.int32), 0)
        ties -= tl.sum(equal, 0)


@jit
def _choose(
    pre, bounds, found, candidates, features, values, n_features, k, BLOCK: tl.constexpr, ROOM: tl.constexpr
):  # fmt: skip
    """Write the k largest of a row's candidates, or of the row if there was no room for all candidates (ties)."""
    row = tl.program_id(0).to(tl.int64)
    pre += row * n_features
    features += row * k
    values += row * k
    count = tl.load(found + row)
    if count <= ROOM:
        slot = tl.arange(0, ROOM)
        inside = slot < count
        f = tl.load(candidates + row * ROOM + slot, mask=inside, other=0)
        x = tl.load(pre + f, mask=inside, other=0.0)
        keys = tl.where(inside, _key(x), -0x80000000)
        cut = _bisect(keys, k, k)
        ties = k - tl.sum((keys > cut).to(tl.int32), 0)
        equal = (keys == cut).to(tl.int32)
        taken = inside & ((keys > cut) | ((equal > 0) & (tl.cumsum(equal, 0) <= ties)))
        _write(features, values, f, x, taken, tl.cumsum(taken.to(tl.int32), 0) - 1)
    else:
        _choose_of_row(pre, tl.load(bounds + row), features, values, n_features, k, BLOCK)


def top_k(pre_NF: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest of each row, exact; of equal entries the lowest features.

    A row is read twice (torch.topk, one radix digit at a time, reads it 10 to 20 times). Very many ties (over 8 k
    entries that reach about the k-th largest) cost about 30 passes. torch.topk takes over, with ties broken anyhow,
    beyond k = 1,024; it may also win for few rows (under about 100), since a row is one program here.

    Args:
        pre_NF: float32, bfloat16 or float16, contiguous.
        k: at most F.

    Returns:
        offsets (k entries in every row), features (ascending within a row), values in the matrix' dtype: where fewer
        than k are positive, the others of the k largest stand there with value 0, which means "no feature".

    Raises:
        ValueError: k outside 1..F; another dtype or layout.
    """
    check(pre_NF)
    n_rows, n_features = pre_NF.shape
    if not 1 <= k <= n_features:
        raise ValueError(f"k = {k} of {n_features} features")
    offsets = torch.arange(0, n_rows * k + 1, k, device=pre_NF.device)
    if k > _WIDEST_K:
        features = torch.topk(pre_NF, k, dim=1, sorted=False)[1].sort(1)[0]
        return offsets, features.reshape(-1), pre_NF.gather(1, features).relu_().reshape(-1)
    # Few entries share a group with another of the k largest; 16 features a group keep the maxima in registers.
    groups = power_of_two(max(4 * k, -(-n_features // 16)), 64, 4096)
    room = power_of_two(8 * k, 128, 8192)
    bounds, found = (torch.empty(n_rows, dtype=torch.int32, device=pre_NF.device) for _ in range(2))
    candidates = bounds.new_empty(n_rows * room)
    features, values = offsets.new_empty(n_rows * k), pre_NF.new_empty(n_rows * k)
    launch(
        _find_candidates, (n_rows,), pre_NF, bounds, found, candidates, n_features, k,
        GROUPS=groups, ROOM=room, num_warps=power_of_two(groups // 512, 1, 8),
    )  # fmt: skip
    warps = power_of_two(room // 512, 1, 8)
    launch(
        _choose, (n_rows,), pre_NF, bounds, found, candidates, features, values, n_features, k,
        BLOCK=256 * warps, ROOM=room, num_warps=warps,
    )  # fmt: skip
    return offsets, features, values
