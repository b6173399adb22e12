"""Train one dictionary.

The steps: measure the normalisation on the first batches, initialise, then per step: pre-activations, active
features, loss and gradients, (SAE: drop the decoder's parallel gradient), clip, Adam, (SAE: unit rows). At the end
the normalisation is folded into the weights, and every architecture but TopK becomes the JumpReLU it is at inference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
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
from mechstudy.dictionaries.gradients import (
    StepOutput,
    clip,
    loss_and_gradients,
    normalise_rows,
    remove_parallel,
)
from mechstudy.dictionaries.initialise import SKIP_ROWS_PER_INPUT, STATISTICS_ROWS, initial_weights, measure
from mechstudy.dictionaries.scalars import ScalarLog
from mechstudy.dictionaries.state import TrainState
from mechstudy.models.precision import faster_dtype

_HOW_ONLY = ("log_every", "checkpoint_every", "tensorboard")  # of TrainConfig: change no byte of the weights


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
    source: RowSource,
    *,
    site_in: str,
    site_out: str,
    out: Path,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Dictionary:
    """Train a dictionary on `source`; writes scalars.jsonl and tensorboard/ under `out`.

    With `checkpoint`, the run saves itself there every `checkpoint_every` steps and goes on from an existing
    file; a resumed run ends with the same bytes as an uninterrupted one on the same machine.

    Raises:
        MechstudyError: impossible k or widths, NaN or infinity in the activations (names step and row), a loss
            that diverged, a checkpoint that is damaged or of another configuration.
    """
    progress = progress or NullProgress()
    n_features = cfg.width(source.d_in)
    if cfg.kind == "sae" and source.d_in != source.d_out:
        raise MechstudyError(
            "an SAE reconstructs its own input, but the target has another width",
            facts={"input": f"{site_in}, {source.d_in} wide", "target": f"{site_out}, {source.d_out} wide"},
            fix="the same site for both, or kind: transcoder",
        )
    if cfg.kind == "sae" and site_in != site_out:
        raise MechstudyError(
            "an SAE reconstructs its own input, but the target is another site",
            facts={"input": str(site_in), "target": str(site_out)},
            fix="the same site for both, or kind: transcoder",
        )
    fingerprint = _fingerprint(cfg, train_cfg, source, n_features, str(site_in), str(site_out))
    dead_after = train_cfg.resolved_dead_after()
    state = TrainState.restore(checkpoint, fingerprint, device, dead_after) if checkpoint else None
    if state is None:
        state = _start(cfg, train_cfg, source, n_features, device)
    else:
        progress.log(f"resumed at step {state.step:,} of {train_cfg.steps:,}")
    log = ScalarLog(out, tensorboard=train_cfg.tensorboard, start_step=state.step)
    try:
        _loop(cfg, train_cfg, source, state, log, checkpoint, fingerprint, progress, device)
    finally:
        log.close()
    return _finish(cfg, train_cfg, source, state, str(site_in), str(site_out))


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
    cfg: DictionaryConfig, train_cfg: TrainConfig, source: RowSource, n_features: int, device: str
) -> TrainState:
    with_skip = cfg.kind == "skip_transcoder"
    n_rows = max(STATISTICS_ROWS, SKIP_ROWS_PER_INPUT * source.d_in if with_skip else 0)
    n_rows = min(n_rows, train_cfg.steps * train_cfg.batch_size)
    moments = measure(_checked(source, 0, train_cfg, device), n_rows=n_rows, with_cross=with_skip)
    generator = torch.Generator().manual_seed(train_cfg.seed)
    weights = initial_weights(cfg.kind, n_features, source.d_in, source.d_out, moments, generator)
    weights.b_enc, weights.extra = architecture_of(cfg).start(moments.sample @ weights.enc.T)
    precision: str = train_cfg.precision
    if precision == "auto":
        precision = faster_dtype(source.d_in, n_features, device, train_cfg.batch_size)
    return TrainState.fresh(weights, moments.normalisation, precision, device)


def _loop(
    cfg: DictionaryConfig,
    train_cfg: TrainConfig,
    source: RowSource,
    state: TrainState,
    log: ScalarLog,
    checkpoint: Path | None,
    fingerprint: dict[str, Any],
    progress: Progress,
    device: str,
) -> None:
    begun = time.monotonic() - log.seconds_before
    with progress.bar("train", train_cfg.steps, "steps", done=state.step) as bar:
        for x, y in _checked(source, state.step, train_cfg, device):
            if state.step >= train_cfg.steps:
                break
            x, y = state.normalisation.apply(x, y)
            output = train_step(cfg, train_cfg, state, x, y)
            step, last = state.step, state.step == train_cfg.steps
            if step % train_cfg.log_every == 0 or last or step == 1:
                values = _scalars(train_cfg, state, output, y, time.monotonic() - begun)
                log.write(step, values)
                bar.advance(1, loss=values["loss"], fvu=values["fvu"], l0=values["l0"])
            else:
                bar.advance(1)
            if checkpoint is not None and (step % train_cfg.checkpoint_every == 0 or last):
                _assert_finite(state, output)
                state.save(checkpoint, fingerprint)
            if last:
                _assert_finite(state, output)
                break
    if state.step < train_cfg.steps:
        raise MechstudyError(
            f"the activations ended at step {state.step} of {train_cfg.steps}",
            fix="a source that repeats its rows",
        )


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
    )
    if cfg.kind == "sae":
        remove_parallel(output.gradients.dec, state.weights.dec)
    clip(output.gradients, train_cfg.clip)
    for group in state.optimizer.param_groups:
        group["lr"] = train_cfg.resolved_lr(len(state.weights.b_enc)) * train_cfg.lr_factor(state.step)
    for (_, weight), (_, gradient) in zip(state.weights.named(), output.gradients.named(), strict=True):
        weight.grad = gradient
    state.optimizer.step()
    if cfg.kind == "sae":
        normalise_rows(state.weights.dec)
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


def _checked(source: RowSource, start: int, train_cfg: TrainConfig, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The source's batches on the device, as float32; widths and finiteness checked. x is y stays so."""
    batches = source.batches(start)
    try:
        for step, (x, y) in enumerate(batches, start):
            same = y is x
            for name, tensor, width in (("input", x, source.d_in), ("target", y, source.d_out)):
                if tensor.ndim != 2 or tensor.shape[1] != width:
                    raise MechstudyError(
                        f"{name} rows have shape {list(tensor.shape)}, but {width} columns were promised",
                        facts={"step": str(step)},
                    )
                if not torch.isfinite(tensor.sum(dtype=torch.float32)):
                    _raise_non_finite(name, tensor, step, train_cfg.batch_size)
                if same:
                    break
            x = x.to(device, torch.float32)
            yield x, x if same else y.to(device, torch.float32)
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def _raise_non_finite(name: str, tensor: Tensor, step: int, batch_size: int) -> None:
    bad = (~torch.isfinite(tensor)).any(1).nonzero().squeeze(1)
    if not len(bad):
        return  # the sum overflowed, the rows are finite
    raise MechstudyError(
        f"the {name} activations hold NaN or infinity",
        where=f"step {step}, row {int(bad[0])}",
        facts={"rows affected": f"{len(bad)} of {len(tensor)} in this batch"},
        fix="capture again in float32 or bfloat16: float16 overflows at 65,504",
    )


def _assert_finite(state: TrainState, output: StepOutput) -> None:
    if not torch.isfinite(output.loss) or not torch.isfinite(state.weights.dec.sum()):
        raise MechstudyError(
            f"training diverged: the loss is {float(output.loss):.3g} at step {state.step}",
            facts={"learning rate": f"{state.optimizer.param_groups[0]['lr']:.3g}"},
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
        "lr": float(state.optimizer.param_groups[0]["lr"]),
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
    weights, threshold = architecture_of(cfg).at_inference(state.weights, state.threshold)
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
