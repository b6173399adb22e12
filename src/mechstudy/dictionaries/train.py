"""Train one dictionary.

The steps: measure the normalisation on the first batches, initialise, then per step: pre-activations, active
features, loss and gradients, (SAE: drop the decoder's parallel gradient), clip, Adam, (SAE: unit rows). At the end
the normalisation is folded into the weights, and every architecture but TopK becomes the JumpReLU it is at inference.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.architectures import Architecture, architecture_of
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.control import coefficient
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from mechstudy.dictionaries.gradients import StepOutput, clip_factor, loss_and_gradients
from mechstudy.dictionaries.health import Finding, Health
from mechstudy.dictionaries.initialise import Moments, initial_weights, measure, statistics_rows
from mechstudy.dictionaries.rows import rows_of
from mechstudy.dictionaries.scalars import ScalarLog
from mechstudy.dictionaries.state import TrainState
from mechstudy.dictionaries.weights import Weights
from mechstudy.models.precision import faster_dtype

_HOW_ONLY = ("log_every", "checkpoint_every", "tensorboard", "health")  # of TrainConfig: change no byte of the weights


class RowSource(Protocol):
    """Where rows come from; `activations.reader.RowReader` is one.

    `batches(start)` yields (x [N, d_in], y [N, d_out]) for step start, start+1, ... for ever, fully determined by
    the source and `start`. A source that drops sinks has `max_input_norm` and `max_output_norm`, the largest
    norms it lets pass.
    """

    d_in: int
    d_out: int

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


def train(
    cfg: DictionaryConfig,
    train_cfg: TrainConfig,
    source: Any,
    *,
    site_in: str = "activations",
    site_out: str = "",
    out: Path | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Dictionary:
    """Train a dictionary.

    With `checkpoint`, the run saves itself there every `checkpoint_every` steps and goes on from an existing
    file; a resumed run ends with the same bytes as an uninterrupted one on the same machine.

    Args:
        source: a `RowSource` such as a store's reader; or rows [N, d], a pair (inputs, targets), or any iterable of
            such batches (see `rows.rows_of`).
        site_in, site_out: what the rows are, kept in the file; site_out is site_in for an SAE if not given.
        out: receives scalars.jsonl and tensorboard/; None: nothing is logged.

    Raises:
        MechstudyError: impossible k or widths, NaN or infinity in the activations (names step and row), a loss
            that diverged, a checkpoint that is damaged or of another configuration.
    """
    progress = progress or NullProgress()
    source = rows_of(source, train_cfg.batch_size, train_cfg.seed)
    site_out = site_out or (site_in if cfg.kind == "sae" else f"target of {site_in}")
    training = Training(cfg, train_cfg, source, site_in=site_in, site_out=site_out, out=out, checkpoint=checkpoint,
                        device=device)  # fmt: skip
    training.begin(source.batches(), progress)
    with training, progress.bar("train", train_cfg.steps, "steps", done=training.step) as bar:
        for x, y in source.batches(training.step):
            if training.finished:
                break
            bar.advance(1, **training.take(x, y))
            if training.finished:
                break
    return training.finish()


class Training:
    """One dictionary in training: `begin`, then `take` a batch at a time, then `finish`.

    `train` drives one; `many.train_many` drives several with the batches of one pass.
    """

    def __init__(
        self,
        cfg: DictionaryConfig,
        train_cfg: TrainConfig,
        source: RowSource,
        *,
        site_in: str,
        site_out: str,
        out: Path | None,
        checkpoint: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.cfg, self.train_cfg, self.source = cfg, train_cfg, source
        self.site_in, self.site_out = str(site_in), str(site_out)
        self.out, self.checkpoint, self.device = out, checkpoint, device
        self.n_features = cfg.width(source.d_in)
        _check_sites(cfg, source, self.site_in, self.site_out)
        self.fingerprint = _fingerprint(cfg, train_cfg, source, self.n_features, self.site_in, self.site_out)
        self.health = Health(cfg, train_cfg)
        self._progress: Progress = NullProgress()
        self._state: TrainState | None = None
        self._log: ScalarLog | None = None

    @property
    def state(self) -> TrainState:
        assert self._state is not None, "begin() comes first"
        return self._state

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    @property
    def finished(self) -> bool:
        return self.state.step >= self.train_cfg.steps

    def begin(self, first_batches: Iterable[tuple[Tensor, Tensor]], progress: Progress) -> None:
        """Go on from the checkpoint where there is one; else start from statistics of the first batches."""
        if self.checkpoint is not None:
            dead_after = self.train_cfg.resolved_dead_after()
            self._state = TrainState.restore(self.checkpoint, self.fingerprint, self.device, dead_after)
        self._progress = progress
        if self._state is not None:
            progress.log(f"resumed at step {self.step:,} of {self.train_cfg.steps:,}")
            self.health.restore(self._state.health)
            return
        rows = (self._usable(x, y, step)[:2] for step, (x, y) in enumerate(first_batches))
        self._state, moments = _start(self.cfg, self.train_cfg, self.source.d_in, self.source.d_out, rows, self.device)
        self._tell(self.health.data(moments.mean_to_spread))

    def __enter__(self) -> Training:
        self._begun = time.monotonic()
        if self.out is not None:
            self._log = ScalarLog(self.out, tensorboard=self.train_cfg.tensorboard, start_step=self.step)
            self._begun -= self._log.seconds_before
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            self._log.close()

    def take(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """One step on raw rows; the scalars, where this step logs any.

        Raises:
            MechstudyError: rows of another width or with NaN or infinity, a loss that diverged, or poor health where
                the recipe says to stop.
        """
        cfg, train_cfg, state = self.cfg, self.train_cfg, self.state
        x, y, left_out = self._usable(x, y, state.step)
        state.left_out += left_out
        x, y = state.normalisation.apply(x, y)
        output = train_step(cfg, train_cfg, state, x, y)
        step, last = state.step, self.finished
        told: dict[str, Any] = {}
        if step % train_cfg.log_every == 0 or last or step == 1:
            values = _scalars(train_cfg, state, output, y, time.monotonic() - self._begun)
            if self._log is not None:
                self._log.write(step, values)
            told = {name: values[name] for name in ("loss", "fvu", "l0")}
            self._tell(self.health.step(step, values))
        saves = self.checkpoint is not None and step % train_cfg.checkpoint_every == 0
        if saves or last:
            _assert_finite(state, output)
        if self.checkpoint is not None and (saves or last):
            state.health = self.health.state()
            state.save(self.checkpoint, self.fingerprint)
        return told

    def finish(self) -> Dictionary:
        """The trained dictionary, on raw activations.

        Raises:
            MechstudyError: the source ended early.
        """
        if not self.finished:
            raise MechstudyError(
                f"the activations ended at step {self.step} of {self.train_cfg.steps}",
                fix="a source that repeats its rows",
            )
        found = _finish(self.cfg, self.train_cfg, self.source, self.state, self.site_in, self.site_out)
        if self.health.findings:
            found.metadata["health"] = self.health.as_json()
        return found

    def _tell(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self._progress.log(f"{self.site_out}, step {finding.step:,}: {finding.text}; fix: {finding.fix}")

    def _usable(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Tensor, int]:
        """The rows on the device as float32, without those that are not finite; and how many those were."""
        same = y is x
        for name, tensor, width in (("input", x, self.source.d_in), ("target", y, self.source.d_out)):
            if tensor.ndim != 2 or tensor.shape[1] != width:
                raise MechstudyError(
                    f"{name} rows have shape {list(tensor.shape)}, but {width} columns were promised",
                    where=f"step {step}",
                )
        x = x.to(self.device, torch.float32)
        y = x if same else y.to(self.device, torch.float32)
        if torch.isfinite(x.sum()) and (same or torch.isfinite(y.sum())):
            return x, y, 0
        finite = torch.isfinite(x).all(1) & torch.isfinite(y).all(1)
        bad = (~finite).nonzero().squeeze(1)
        if not len(bad):  # the sum overflowed, the rows are finite
            return x, y, 0
        if self.train_cfg.non_finite == "refuse" or len(bad) == len(x):
            name = "input" if not torch.isfinite(x[bad[0]]).all() else "target"
            raise MechstudyError(
                f"the {name} activations hold NaN or infinity",
                where=f"{self.site_out}: step {step}, row {int(bad[0])}",
                facts={"rows affected": f"{len(bad)} of {len(x)} in this batch"},
                fix="capture again in float32 or bfloat16 (float16 overflows at 65,504), or training.non_finite: skip",
            )
        x = x[finite]
        return x, x if same else y[finite], len(bad)


def _check_sites(cfg: DictionaryConfig, source: RowSource, site_in: str, site_out: str) -> None:
    if cfg.kind != "sae":
        return
    if source.d_in != source.d_out:
        raise MechstudyError(
            "an SAE reconstructs its own input, but the target has another width",
            facts={"input": f"{site_in}, {source.d_in} wide", "target": f"{site_out}, {source.d_out} wide"},
            fix="the same site for both, or kind: transcoder",
        )
    if site_in != site_out:
        raise MechstudyError(
            "an SAE reconstructs its own input, but the target is another site",
            facts={"input": site_in, "target": site_out},
            fix="the same site for both, or kind: transcoder",
        )


def _fingerprint(
    cfg: DictionaryConfig,
    train_cfg: TrainConfig,
    source: RowSource,
    n_features: int,
    site_in: str,
    site_out: str,
) -> dict[str, Any]:
    recipe = {key: value for key, value in train_cfg.canonical().items() if key not in _HOW_ONLY}
    widths = {"d_in": source.d_in, "d_out": source.d_out, "d_sae": n_features}
    return {**cfg.canonical(), **recipe, **widths, "site_in": site_in, "site_out": site_out}


def _start(
    cfg: DictionaryConfig,
    train_cfg: TrainConfig,
    d_in: int,
    d_out: int,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: str,
) -> tuple[TrainState, Moments]:
    n_features, with_skip = cfg.width(d_in), cfg.kind == "skip_transcoder"
    n_rows = min(statistics_rows(d_in, with_skip=with_skip), train_cfg.steps * train_cfg.batch_size)
    moments = measure(batches, n_rows=n_rows, with_cross=with_skip)
    generator = torch.Generator().manual_seed(train_cfg.seed)
    weights = initial_weights(cfg.kind, n_features, d_in, d_out, moments, generator)
    weights.b_enc, weights.extra = architecture_of(cfg).start(moments.sample @ weights.enc.T)
    precision: str = train_cfg.precision
    if precision == "auto":
        precision = faster_dtype(d_in, n_features, device, train_cfg.batch_size)
    return TrainState.fresh(weights, moments.normalisation, precision, device), moments


def train_step(cfg: DictionaryConfig, train_cfg: TrainConfig, state: TrainState, x: Tensor, y: Tensor) -> StepOutput:
    """One optimisation step on a normalised batch; changes `state`."""
    architecture = architecture_of(cfg)
    output = loss_and_gradients(
        state.weights,
        x,
        y,
        architecture,
        dense_dtype=torch.bfloat16 if state.precision == "bfloat16" else x.dtype,
        guess=state.last_minimum,
        prefixes=cfg.prefixes(len(state.weights.b_enc)),
        coefficient=_coefficient(cfg, architecture, state),
        unit_decoder=cfg.kind == "sae",
        dead=state.dead,
        aux_k=train_cfg.resolved_aux_k(y.shape[1]),
        aux_alpha=train_cfg.aux_alpha,
        scratch=state.scratch,
    )
    state.optimizer.step(
        state.weights,
        output.gradients,
        train_cfg.resolved_lr(len(state.weights.b_enc)) * train_cfg.lr_factor(state.step),
        factor=clip_factor(output.gradients, train_cfg.clip, output.squares),
        unit=("dec",) if cfg.kind == "sae" else (),
        copies=state.scratch.copies,
    )
    if train_cfg.ema is not None:
        state.observe_weights(train_cfg.ema)
    if output.minimum is not None:
        state.observe_minimum(output.minimum, train_cfg.threshold_rate())
    state.observe_codes(output.codes.fired(), len(x), train_cfg.resolved_dead_after())
    if architecture.needs_control:
        state.last_l0 = float((output.codes.values > 0).sum()) / len(x)
    state.step += 1
    return output


def _coefficient(cfg: DictionaryConfig, architecture: Architecture, state: TrainState) -> float:
    """The penalty's: as given, found by the controller, or one where the penalty has a scale of its own."""
    if cfg.coefficient is not None:
        return cfg.coefficient
    if not architecture.needs_control:
        return 1.0
    value, state.control = coefficient(state.control, state.last_l0, cfg.k)
    return value


def _assert_finite(state: TrainState, output: StepOutput) -> None:
    if not torch.isfinite(output.loss) or not torch.isfinite(state.weights.dec.sum()):
        raise MechstudyError(
            f"training diverged: the loss is {float(output.loss):.3g} at step {state.step}",
            facts={"learning rate": f"{state.optimizer.lr:.3g}"},
            fix="a smaller lr, or a longer warm-up",
        )


def _scalars(
    train_cfg: TrainConfig, state: TrainState, output: StepOutput, y: Tensor, seconds: float
) -> dict[str, Any]:
    variance = (y - y.mean(0)).square().sum(dtype=torch.float64)
    values: dict[str, Any] = {
        "loss": float(output.loss),
        "fvu": float(output.error_ND.square().sum(dtype=torch.float64) / variance.clamp_min(1e-30)),
        "l0": float((output.codes.values > 0).sum()) / len(y),
        "lr": float(state.optimizer.lr),
        "dead_share": (0 if state.dead is None else len(state.dead)) / len(state.weights.b_enc),
        "rows": state.rows,
        "seconds": round(seconds, 3),
    }
    if output.aux_loss is not None:
        values["aux_loss"] = float(output.aux_loss)
    if output.penalty is not None:
        values["penalty"] = float(output.penalty)
    if state.threshold is not None:
        values["threshold"] = state.threshold * state.normalisation.scale_out
    return values


def _finish(
    cfg: DictionaryConfig,
    train_cfg: TrainConfig,
    source: RowSource,
    state: TrainState,
    site_in: str,
    site_out: str,
) -> Dictionary:
    """Fold the normalisation and wrap up."""
    norm = state.normalisation
    learned = Weights.of(state.average) if state.average else state.weights
    weights, threshold = architecture_of(cfg).at_inference(learned, state.threshold)
    folded = norm.fold(weights)
    limit = getattr(source, "max_input_norm", None)
    limit_out = getattr(source, "max_output_norm", None)
    n_features = len(folded.b_enc)
    metadata = {
        "max_input_norm": None if limit is None else float(limit),
        "max_output_norm": None if limit_out is None else float(limit_out),
        "trained_as": f"matryoshka_{cfg.activation}" if cfg.matryoshka else cfg.activation,
        "normalisation": {"scale_in": norm.scale_in, "scale_out": norm.scale_out},
        "precision": state.precision,
        "steps": state.step,
        "train_rows": state.rows,
        **({"rows_left_out": state.left_out} if state.left_out else {}),
        "lr": train_cfg.resolved_lr(n_features),
        "seed": train_cfg.seed,
    }
    meta = DictionaryMeta(
        kind=cfg.kind,
        activation="topk" if threshold is None else "jumprelu",
        d_in=source.d_in,
        d_out=source.d_out,
        d_sae=n_features,
        k=cfg.k,
        site_in=site_in,
        site_out=site_out,
        metadata=metadata,
    )
    return Dictionary(
        meta,
        W_enc=folded.enc.T.contiguous(),
        b_enc=folded.b_enc,
        W_dec=folded.dec,
        b_dec=folded.b_dec,
        W_skip=folded.skip,
        threshold=None if threshold is None else threshold * norm.scale_out,
    )
