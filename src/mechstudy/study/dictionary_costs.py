"""Costs of training one layer's dictionary: its file, its memory, and the work of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mechstudy.core.errors import MechstudyError
from mechstudy.core.work import Held, Work
from mechstudy.dictionaries.config import DictionaryConfig
from mechstudy.dictionaries.sizes import (
    file_bytes,
    log_bytes,
    n_weights,
    statistics_rows,
    step_work,
    training_memory,
)
from mechstudy.study.study_plan import StudyPlan

WEIGHTS = "dictionary/sae_weights.safetensors"
_OTHER_FILES = 8_000  # bytes of cfg.json, evaluation.json and the heads of the logs


@dataclass(frozen=True)
class DictionaryCosts:
    """Bytes of float32 ``weights``, of training's working set (``memory``) and of the artifact (``disk``).

    The last three items of ``work`` evaluate the dictionary and write its file.
    """

    d_in: int
    n_features: int
    k: int
    with_skip: bool
    weights: int
    memory: int
    disk: int
    flops: float
    work: tuple[Work, ...]
    payload: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    shapes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: StudyPlan, architecture: DictionaryConfig | None = None) -> DictionaryCosts:
        """The costs of an architecture (default: the study's own) on rows that are stored.

        Raises:
            MechstudyError: the architecture does not fit the model's width; ``where`` is the field of the study.
        """
        study, d = plan.study, plan.study.dictionaries
        architecture, t = architecture or d.architecture, d.training
        d_in, d_out = (plan.shapes.width(kind) for kind in d.sites())
        try:
            n = architecture.width(d_in)
        except MechstudyError as error:
            where = f"dictionaries.architecture.{error.where}"
            raise MechstudyError(error.what, where=where, facts=error.facts, fix=error.fix) from None
        skip = architecture.kind == "skip_transcoder"
        step = step_work(architecture, t, n, d_in, d_out)
        first = statistics_rows(d_in, with_skip=skip)
        judged = min(d.evaluation_rows, study.corpus.held_out_rows * study.corpus.context)
        size = file_bytes(architecture, n, d_in, d_out)
        row_width = d_in if d_in == d_out and d.architecture.kind == "sae" else d_in + d_out
        store = 2.0 * study.corpus.train_rows * study.corpus.context * row_width  # read once, then cached
        work = (
            Work("train", t.steps * step.dense, t.precision, min(d_in, t.batch_size)),
            Work("sparse", t.steps * step.sparse),
            Work("stream", t.steps * (step.streamed_bytes + 4 * step.read_bytes)),
            Work("read", min(t.steps * step.read_bytes, store)),
            Work("train", 2.0 * first * d_in * (n + (d_out if skip else 0)), "float32", min(d_in, n)),
            Work("train", 2.0 * judged * n * d_in, "float32", min(d_in, n)),
            Work("stream", 8.0 * judged * (10 * (d_in + d_out) + n)),
            Work("write", size),
        )
        return cls(
            d_in,
            n,
            architecture.k,
            skip,
            4 * n_weights(architecture, n, d_in, d_out),
            training_memory(architecture, t, n, d_in, d_out),
            size + _OTHER_FILES + log_bytes(t),
            t.steps * step.dense,
            work,
            {WEIGHTS: size},
            f"{t.steps:,} steps x {t.batch_size:,} rows",
            {"width": f"{d_in} > {n:,} (k {architecture.k}) > {d_out}"},
        )

    def streamed(self) -> DictionaryCosts:
        """The costs that remain after a streamed pass has trained it: copying and evaluation."""
        work = (Work("read", self.disk), *self.work[-3:])
        return replace(self, memory=2 * self.weights, flops=0.0, work=work)


def held_dictionaries(plan: StudyPlan) -> Held:
    """All dictionaries of a study in memory."""
    return Held("dictionaries", len(plan.layers) * DictionaryCosts.of(plan).weights // 4)
