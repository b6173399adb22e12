"""Trains several dictionaries in one pass: every batch is read or computed once, and each training takes its sites.

Step s of every training is batch s of the pass without that training's sinks, so a batch may be a few rows short.
Training one of them alone on the same pass gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.progress import Progress
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.sizes import statistics_rows
from mechstudy.dictionaries.stored import AnyPath
from mechstudy.dictionaries.training.trainer import Training, run_trainings


@runtime_checkable
class PassSource(Protocol):
    """Rows of several sites at once: `activations.multi_site_batches.StorePass` or `StreamPass`.

    widths: site -> number of coordinates; limits: site -> norm above which a row is a sink (absent: no row is).
    `batches(start)` yields for step start, start+1, ... the same rows at every site, {site: [batch_size, width]},
    fully determined by the source and the step.
    """

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""

    @property
    def widths(self) -> Mapping[str, int]:
        """Coordinates by site."""

    @property
    def limits(self) -> Mapping[str, float]:
        """Norms of the longest rows that are no sinks, by site."""

    def batches(self, start: int = 0) -> Iterator[Mapping[str, Tensor]]:
        """Rows by site, from a step on."""


@dataclass(frozen=True)
class Job:
    """One dictionary to train. ``out`` is the folder of its scalars, ``checkpoint`` the file it saves to."""

    name: str
    architecture: DictionaryConfig
    recipe: TrainConfig
    site_in: str
    site_out: str
    out: AnyPath
    checkpoint: AnyPath | None = None


class View:
    """One dictionary's part of a pass, as a `trainer.RowSource`.

    Raises:
        MechstudyError: a site is not part of the pass.
    """

    def __init__(self, source: PassSource, site_in: str, site_out: str) -> None:
        for site in (site_in, site_out):
            if site not in source.widths:
                guess = nearest(site, source.widths)
                raise MechstudyError(
                    f"{site} is not part of the pass",
                    facts={"sites": ", ".join(source.widths)},
                    fix=f"did you mean {guess}?" if guess else "add it to the pass",
                )
        self.source, self.site_in, self.site_out = source, site_in, site_out
        self.d_in, self.d_out = source.widths[site_in], source.widths[site_out]
        self.max_input_norm = source.limits.get(site_in)
        self.max_output_norm = source.limits.get(site_out)

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) of steps ``start``, ``start + 1``, ..., without sinks."""
        for rows in self.source.batches(start):
            yield self.select(rows)

    def select(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(x, y) float32 without sinks; one tensor where the sites are one."""
        x = rows[self.site_in].float()
        y = x if self.site_in == self.site_out else rows[self.site_out].float()
        keep = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for tensor, limit in ((x, self.max_input_norm), (y, self.max_output_norm)):
            if limit is not None:
                norms = torch.linalg.vector_norm(tensor, dim=1)
                keep &= (norms <= limit) | ~torch.isfinite(norms)  # non-finite rows are kept: training names them
        if bool(keep.all()):
            return x, y
        kept = x[keep]
        return kept, kept if y is x else y[keep]


def train_many(
    jobs: Sequence[Job], source: PassSource, *, progress: Progress | None = None, device: str = "cpu"
) -> dict[str, Dictionary | CrossLayerTranscoder]:
    """Train every job's dictionary from one pass over the source.

    A killed run resumes from the checkpoints; those further ahead wait for the others. If a stop is requested
    (`core.signals`), all of them save after the current step.

    Args:
        jobs: what to train.
        source: the pass.
        progress: receives progress and health findings.
        device: where to train.

    Returns:
        Job name -> dictionary.

    Raises:
        MechstudyError: as `trainer.train`; two jobs of one name; a recipe with another batch size than the pass.
    """
    _check(jobs, source)
    trainings: dict[str, tuple[Training, View]] = {}
    for job in jobs:
        view = View(source, job.site_in, job.site_out)
        trainings[job.name] = (
            Training(job.architecture, job.recipe, view, site_in=job.site_in, site_out=job.site_out, out=job.out,
                     checkpoint=job.checkpoint, device=device),
            view,
        )  # fmt: skip
    _begin(trainings, source, progress)
    label = f"{len(jobs)} dictionaries" if len(jobs) > 1 else "1 dictionary"
    run_trainings(
        [training for training, _ in trainings.values()],
        source.batches,
        [view.select for _, view in trainings.values()],
        label=label,
        progress=progress,
    )
    return {name: training.finish() for name, (training, _) in trainings.items()}


def _check(jobs: Sequence[Job], source: PassSource) -> None:
    names = [job.name for job in jobs]
    if not jobs:
        raise MechstudyError("there is nothing to train")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise MechstudyError(f"two dictionaries are called {repeated[0]!r}")
    for job in jobs:
        if job.recipe.batch_size != source.batch_size:
            raise MechstudyError(
                f"{job.name}: batch_size is {job.recipe.batch_size}, the pass gives {source.batch_size} rows at a time",
                fix="one batch_size for all dictionaries of a pass",
            )


def _begin(trainings: Mapping[str, tuple[Training, View]], source: PassSource, progress: Progress | None) -> None:
    """Start or resume every training; the first batches, for their statistics, are read once for all."""
    rows = max(
        statistics_rows(view.d_in, with_skip=training.cfg.kind == "skip_transcoder")
        for training, view in trainings.values()
    )
    first_batches: list[Mapping[str, Tensor]] = []

    def first(view: View) -> Iterator[tuple[Tensor, Tensor]]:
        if not first_batches:
            first_batches.extend(islice(source.batches(0), -(-rows // source.batch_size) + 1))
        for batch in first_batches:
            yield view.select(batch)

    for training, view in trainings.values():
        training.begin(first(view), progress)
