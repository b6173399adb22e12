"""A behaviour's scores as a table, and their summary with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import polars

from mechstudy.behaviours.scoring import Score
from mechstudy.statistics.bootstrap import cluster_bootstrap, cluster_share


def write_scores(scores: Sequence[Score], path: Path) -> None:
    """One CSV row per prompt."""
    polars.DataFrame([score.row() for score in scores]).write_csv(path)


def summarise_scores(
    scores: Sequence[Score], *, seed: int, split: int, n_resamples: int, min_accuracy: float
) -> dict[str, Any]:
    """Accuracy and logit difference of a split with 95% intervals over groups, and whether it passes.

    Where ``ci95`` is null because every group has the same mean, ``ci95_missing`` says so.

    Args:
        seed: of the bootstrap; ``split`` numbers the split, so that each has its own draws.
    """
    rng = np.random.default_rng([seed, split])
    groups = [score.group for score in scores]
    accuracy = cluster_share([float(s.correct) for s in scores], groups, rng, n_resamples=n_resamples)
    difference = cluster_bootstrap([s.logit_difference for s in scores], groups, rng, n_resamples=n_resamples)
    share = fmean(float(s.correct) for s in scores)
    return {
        "n": len(scores),
        "accuracy": share,
        "accuracy_ci95": accuracy.ci,
        "mean_logit_difference": fmean(s.logit_difference for s in scores),
        "ci95": difference.ci,
        "median_rank": median(s.rank_answer for s in scores),
        "passed": share >= min_accuracy,
        **difference.missing_fields("ci95"),
    }
