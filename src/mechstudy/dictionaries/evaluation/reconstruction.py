"""Scores of a dictionary on held-out rows. Inside the model: `model_effect`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.training.rows import HeldOut

DENSE_FROM = 0.1  # a feature active in more than this share of rows is dense
HISTOGRAM_EDGES = [-7.0 + 0.25 * i for i in range(29)]  # log10 of a feature's share of active rows
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NO_LENGTH = 1e-12  # of the mean squared distance: a row this near to the mean differs from it by rounding only
_EQUAL = 1e-24  # of the mean squared norm: float64 rows with less variance differ by rounding only

Batch = tuple[Tensor, Tensor]


class VarianceSums:
    """Float64 sums for FVU against the vector mean, pooled over batches.

    The first batch's mean is subtracted first, so large offsets cost no digits.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self._origin: Tensor | None = None
        self._sum: Tensor | None = None
        self._square = 0.0
        self._error = 0.0

    def add(self, y_ND: Tensor, y_hat_ND: Tensor) -> None:
        """Add a batch of targets and reconstructions."""
        y = y_ND.double()
        if not len(y):
            return
        if self._origin is None or self._sum is None:
            self._origin = y.mean(0)
            self._sum = torch.zeros_like(self._origin)
        centred = y - self._origin
        self._sum = self._sum + centred.sum(0)
        self._square += float(centred.square().sum())
        self._error += float((y - y_hat_ND.double()).square().sum())
        self.n_rows += len(y)

    def fvu(self) -> float:
        """Fraction of variance unexplained.

        Raises:
            MechstudyError: no rows, or all rows equal, so that there is no variance to explain.
        """
        if self._sum is None or not self.n_rows:
            raise MechstudyError("there are no rows to evaluate on")
        total = self._square - float(self._sum.square().sum()) / self.n_rows
        if not total > 0:
            raise MechstudyError(
                "every row is equal, so there is no variance to explain", facts={"rows": str(self.n_rows)}
            )
        return self._error / total


def fvu(y_ND: Float[Tensor, "n d"], y_hat_ND: Float[Tensor, "n d"]) -> float:
    """Fraction of variance unexplained: 0 is perfect, 1 is no better than the vector mean over rows.

    Raises:
        MechstudyError: every row is equal.
    """
    sums = VarianceSums()
    sums.add(y_ND, y_hat_ND)
    return sums.fvu()


@torch.no_grad()
def evaluate(
    dictionary: Dictionary | CrossLayerTranscoder, batches: Any, *, non_finite: Literal["refuse", "skip"] = "refuse"
) -> dict[str, Any]:
    """Score on held-out rows.

    The rows are read twice, first for the targets' mean m. An iterator's batches are kept in memory in between; lists
    and readers are read again. Sinks (rows above the dictionary's `max_input_norm` or `max_output_norm`) are counted in
    `sink_rows_share` and left out of the rest. Sums are float64.

    Args:
        dictionary: what to score.
        batches: all rows at once, x or (x, y), or an iterable of batches; x [N, d_in], y [N, d_out], tensors or NumPy
            arrays. An SAE needs x alone. Of a crosscoder [N, n_sites, d] or its sites side by side; of a clt [N, L, d].
        non_finite: rows with NaN or infinity raise an error, or are left out and counted.

    Returns:
        fvu: sum |y - y_hat|^2 / sum |y - m|^2, pooled over rows, and r2 = 1 - fvu.
        fvu_per_row: |y - y_hat|^2 / |y - m|^2 of each row. Long rows dominate the pooled one; here rows count equally.
        l0 (mean active features of a row) and l0_per_row.
        cosine: of y and y_hat; cosine_centred: of y - m and y_hat - m, which a common offset does not raise.
        shrinkage: |y_hat - m| / |y - m| of each row. Missing features lower it too.
        reconstruction_bias: sum |y_hat - m|^2 / sum (y_hat - m).(y - m), the gamma for which y_hat / gamma is nearest
        to y (Rajamanoharan et al. 2024, arXiv 2404.16014, section 4, here about the mean); 1 / gamma is the
        coefficient of regressing y on y_hat. Below 1: activations are too small. None if no feature is active.
        dead_share (never active here), dense_share (active in over a tenth of rows), density_histogram {edges: log10,
        counts} over features that were active.
        n_rows; sink_rows_share; not_finite_rows, left out with non_finite="skip".

        Scores of each row are summarised as {mean, quantiles: {"0.05": ...}} over the rows on which they are defined
        (|y - m|, or for cosines both lengths, not 0); None if there is no such row.

        A clt has no sinks, and fewer scores: fvu, r2, l0, dead_share and dense_share over all layers,
        fvu_per_layer, l0_per_layer, dead_share_per_layer, n_rows and not_finite_rows.

    Raises:
        MechstudyError: no rows, or only sinks; rows of another width; missing targets; all rows equal; NaN or infinity
            (names batch and row).
    """
    if isinstance(dictionary, CrossLayerTranscoder):
        return _of_layers(dictionary, batches, non_finite)
    cfg = dictionary.cfg
    batches = HeldOut(
        batches, widths=(cfg.d_in, cfg.d_out), n_sites=dictionary.n_sites, needs_targets=cfg.kind != "sae"
    )
    mean_D, count = _mean_and_counts(dictionary, batches, non_finite)
    scores = _RowScores(mean_D)
    active_F = torch.zeros(dictionary.cfg.d_sae, dtype=torch.int64, device=dictionary.b_enc.device)
    for _, x, y, _ in _usable(dictionary, batches, non_finite):
        f_NF = dictionary.encode(x)
        y_hat = dictionary.completed(f_NF, x)
        on_NF = f_NF > 0
        scores.add(y, y_hat, on_NF.sum(1))
        active_F += on_NF.sum(0)
    counted = {
        "n_rows": count["rows"],
        "sink_rows_share": count["sinks"] / (count["sinks"] + count["rows"]),
        "not_finite_rows": count["not_finite"],
    }
    return {**scores.summary(), **_densities(active_F.cpu(), count["rows"]), **counted}


def _usable(
    dictionary: Dictionary, batches: Iterable[Batch], non_finite: str
) -> Iterator[tuple[int, Tensor, Tensor, int]]:
    """Per batch: rows that are not finite, x and y of the valid rows, and sinks."""
    for bad, x, y in _finite(batches, dictionary.b_enc, dictionary.cfg.site_out, non_finite):
        valid = dictionary.is_valid(x, y)
        yield bad, x[valid], y[valid], int((~valid).sum())


def _finite(batches: Iterable[Batch], like: Tensor, site: str, non_finite: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Per batch: rows that are not finite, and x and y of the others, in dtype and on the device of ``like``."""
    for number, batch in enumerate(batches):
        x, y = (tensor.to(like) for tensor in batch)
        finite = torch.isfinite(x).all(1) & torch.isfinite(y).all(1)
        bad = len(x) - int(finite.sum())
        if bad and non_finite == "refuse":
            row = int((~finite).nonzero()[0])
            name = "target" if bool(torch.isfinite(x[row]).all()) else "input"
            raise MechstudyError(
                f"the {name} rows to evaluate on hold NaN or infinity",
                where=f"{site}: batch {number}, row {row}",
                facts={"rows affected": f"{bad} of {len(x)} in this batch"},
                fix="capture again in float32 or bfloat16 (float16 overflows at 65,504), or training.non_finite: skip",
            )
        yield (bad, x[finite], y[finite]) if bad else (bad, x, y)


def _mean_and_counts(
    dictionary: Dictionary, batches: Iterable[Batch], non_finite: str
) -> tuple[Tensor, dict[str, int]]:
    """The targets' mean [d_out], float64, and how many rows there are of which kind."""
    total_D = torch.zeros(dictionary.cfg.d_out, dtype=torch.float64, device=dictionary.b_enc.device)
    count = {"rows": 0, "sinks": 0, "not_finite": 0}
    for bad, _, y, sinks in _usable(dictionary, batches, non_finite):
        total_D += y.double().sum(0)
        for name, n in (("rows", len(y)), ("sinks", sinks), ("not_finite", bad)):
            count[name] += n
    if not count["rows"]:
        raise MechstudyError(
            "there are no rows to evaluate on",
            where=dictionary.cfg.site_out,
            facts={"sinks": str(count["sinks"]), "not finite": str(count["not_finite"])},
            fix="more held-out rows" if not count["sinks"] else "rows of the site the dictionary was trained on",
        )
    return total_D / count["rows"], count


class _RowScores:
    """Scores of every row, about the targets' mean."""

    def __init__(self, mean_D: Tensor) -> None:
        self._mean_D = mean_D
        self._rows: dict[str, list[Tensor]] = {}
        self._sums = {"error": 0.0, "variance": 0.0, "power": 0.0, "product": 0.0}

    def add(self, y_ND: Tensor, y_hat_ND: Tensor, l0_N: Tensor) -> None:
        y, y_hat = y_ND.double(), y_hat_ND.double()
        centred, centred_hat = y - self._mean_D, y_hat - self._mean_D
        sums = {
            "error": (y - y_hat).square().sum(1),
            "variance": centred.square().sum(1),
            "power": centred_hat.square().sum(1),
            "product": (centred * centred_hat).sum(1),
        }
        for name, values in sums.items():
            self._sums[name] += float(values.sum())
        rows = sums | {"l0": l0_N.double(), "raw_product": (y * y_hat).sum(1)}
        rows |= {"raw_variance": y.square().sum(1), "raw_power": y_hat.square().sum(1)}
        for name, values in rows.items():
            self._rows.setdefault(name, []).append(values.cpu())

    def summary(self) -> dict[str, Any]:
        row = {name: torch.cat(values) for name, values in self._rows.items()}
        n, total = len(row["l0"]), self._sums["variance"]
        if not total > _EQUAL * float(row["raw_variance"].sum()):
            zero = not bool(row["raw_variance"].any())
            raise MechstudyError(
                f"every row is {'zero' if zero else 'equal'}, so there is no variance to explain",
                facts={"rows": f"{n:,}"},
                fix="check the captured site: was it ablated, or is the text one token repeated?",
            )
        least = _NO_LENGTH * total / n
        away = row["variance"] > least
        drawn = away & (row["power"] > least)
        nonzero = (row["raw_variance"] > 0) & (row["raw_power"] > 0)
        error, power, product = (self._sums[name] for name in ("error", "power", "product"))
        return {
            "fvu": error / total,
            "r2": 1.0 - error / total,
            "fvu_per_row": distribution((row["error"] / row["variance"])[away]),
            "l0": float(row["l0"].mean()),
            "l0_per_row": distribution(row["l0"]),
            "cosine": distribution((row["raw_product"] / (row["raw_variance"] * row["raw_power"]).sqrt())[nonzero]),
            "cosine_centred": distribution((row["product"] / (row["variance"] * row["power"]).sqrt())[drawn]),
            "shrinkage": distribution((row["power"] / row["variance"]).sqrt()[away]),
            "reconstruction_bias": power / product if product > _NO_LENGTH * total else None,
        }


def distribution(values_N: Tensor) -> dict[str, Any] | None:
    """Mean and quantiles (linearly interpolated) of one number per row; None if there are no rows."""
    if not len(values_N):
        return None
    ordered = values_N.double().sort().values
    quantiles = {}
    for q in QUANTILES:  # torch.quantile refuses more than 16M values
        place = q * (len(ordered) - 1)
        low, high = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
        quantiles[f"{q:g}"] = float(low + (high - low) * (place - int(place)))
    return {"mean": float(ordered.mean()), "quantiles": quantiles}


def _densities(active_F: Tensor, n_rows: int) -> dict[str, Any]:
    density = active_F.double() / n_rows
    histogram = torch.histogram(
        density[density > 0].log10().clamp(HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]),
        torch.tensor(HISTOGRAM_EDGES, dtype=torch.float64),
    ).hist
    return {
        "dead_share": float((active_F == 0).double().mean()),
        "dense_share": float((density > DENSE_FROM).double().mean()),
        "density_histogram": {"edges": HISTOGRAM_EDGES, "counts": [int(count) for count in histogram]},
    }


def _of_layers(clt: CrossLayerTranscoder, batches: Any, non_finite: str) -> dict[str, Any]:
    """The scores of a cross-layer transcoder; see `evaluate`."""
    n_layers, n_features, d_in = clt.W_enc.shape
    d_out = clt.b_dec.shape[1]
    rows = HeldOut(
        batches, widths=(n_layers * d_in, n_layers * d_out), n_sites=n_layers, needs_targets=True
    )  # fmt: skip
    whole, layers = VarianceSums(), [VarianceSums() for _ in range(n_layers)]
    active_LF = torch.zeros(n_layers, n_features, dtype=torch.int64, device=clt.W_enc.device)
    n_rows = not_finite = 0
    for bad, x, y in _finite(rows, clt.W_enc, clt.site_out, non_finite):
        f_NLF = clt.encode(x.view(-1, n_layers, d_in))
        y_hat_NLD, y_NLD = clt.decode(f_NLF), y.view(-1, n_layers, d_out)
        whole.add(y, y_hat_NLD.flatten(1))
        for layer, sums in enumerate(layers):
            sums.add(y_NLD[:, layer], y_hat_NLD[:, layer])
        active_LF += (f_NLF > 0).sum(0)
        n_rows, not_finite = n_rows + len(x), not_finite + bad
    fvu = whole.fvu()
    dead_LF = (active_LF == 0).double().cpu()
    return {
        "fvu": fvu,
        "r2": 1.0 - fvu,
        "fvu_per_layer": [_fvu_of(layer, sums) for layer, sums in enumerate(layers)],
        "l0": float(active_LF.sum()) / n_rows,
        "l0_per_layer": [float(n) / n_rows for n in active_LF.sum(1)],
        "dead_share": float(dead_LF.mean()),
        "dead_share_per_layer": dead_LF.mean(1).tolist(),
        "dense_share": float((active_LF > DENSE_FROM * n_rows).double().mean()),
        "n_rows": n_rows,
        "not_finite_rows": not_finite,
    }


def _fvu_of(layer: int, sums: VarianceSums) -> float | None:
    """FVU of one layer; None if its targets are all equal."""
    try:
        return sums.fvu()
    except MechstudyError:
        return None
