"""Configuration of a dictionary and of its training. Torch-free, so that `plan` is quick."""

from __future__ import annotations

import math
import textwrap
from typing import ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from mechstudy.core.config import Config
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.health_config import HealthConfig

C = TypeVar("C", bound=Config)
Kind = Literal["sae", "transcoder", "skip_transcoder", "crosscoder", "clt"]
ActivationName = Literal["topk", "batchtopk", "relu", "gated", "jumprelu"]
Precision = Literal["auto", "float32", "bfloat16"]
Frozen = Literal["encoder", "decoder"]
PENALTIES_OF: dict[str, tuple[str, ...]] = {  # the first is the default
    "topk": (),
    "batchtopk": (),
    "relu": ("l1", "sqrt", "tanh"),
    "gated": ("l1", "sqrt", "tanh"),
    "jumprelu": ("l0", "tanh"),
}
RECONSTRUCTING = ("sae", "crosscoder")  # kinds whose target is their input; their decoder rows have length one
MATRYOSHKA = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)


def field_rows(cls: type[Config]) -> list[tuple[str, str, str]]:
    """(name, default, description) of every field of a config; the default is "" if a rule decides."""
    rows = []
    for name, field in cls.model_fields.items():
        default = "warn" if isinstance(field.default, HealthConfig) else str(field.default)
        if isinstance(field.default, bool):
            default = default.lower()
        rows.append((name, "" if field.default is None else default, field.description or ""))
    return rows


def _in_help(cls: type[C]) -> type[C]:
    """Appends the fields' descriptions to the class's docstring, which `help` shows."""
    lines = [f"{name}: {text}{f' [{default}]' if default else ''}" for name, default, text in field_rows(cls)]
    indented = [textwrap.fill(line, 110, initial_indent=" " * 8, subsequent_indent=" " * 12) for line in lines]
    cls.__doc__ = "\n".join([(cls.__doc__ or "").rstrip(), "", "    Fields, and their [defaults]:", *indented, ""])
    return cls


@_in_help
class DictionaryConfig(Config):
    """The architecture. Every field enters the artifact's id.

    Rows of a crosscoder or clt hold the sites in order, each of the same width and scaled by itself.
    """

    kind: Kind = Field(
        default="transcoder",
        description="sae, transcoder and skip_transcoder read one site; a crosscoder is an SAE over several (layers, "
        "or models) side by side; a clt's features read one layer and write to it and all later ones",
    )
    activation: ActivationName = Field(
        default="topk", description="how active features are chosen: topk, batchtopk, jumprelu, gated or relu"
    )
    expansion: float | None = Field(
        default=None, gt=0,
        description="features per input coordinate, of one site (clt: for every site); without d_sae 4",
    )  # fmt: skip
    d_sae: int | None = Field(default=None, ge=1, description="the number of features itself, in place of expansion")
    k: int = Field(
        default=32, ge=1,
        description="active features per row, over all sites: at most (topk), on average over a batch (batchtopk), or "
        "the L0 that training steers to (relu, gated, jumprelu)",
    )  # fmt: skip
    penalty: Literal["l0", "l1", "sqrt", "tanh"] | None = Field(
        default=None, description="relu, gated: l1 (their default), sqrt or tanh; jumprelu: l0 (its default) or tanh"
    )
    coefficient: float | None = Field(
        default=None, gt=0, description="the penalty's weight; without it, training adjusts the weight until L0 is k"
    )
    matryoshka: bool | tuple[float, ...] = Field(
        default=False,
        description="prefixes as shares of the features, rising to 1, each of which reconstructs by itself; true is "
        "1/32, 3/32, 7/32, 15/32, 1; for topk, batchtopk and jumprelu",
    )
    bandwidth: float = Field(
        default=0.1, gt=0,
        description="of the straight-through gradient of jumprelu's thresholds, in standard deviations of a feature",
    )  # fmt: skip
    n_sites: int = Field(default=1, ge=1, description="sites of a crosscoder, layers of a clt; 1 for the others")

    @model_validator(mode="after")
    def _one_width(self) -> DictionaryConfig:
        if self.expansion is not None and self.d_sae is not None:
            raise MechstudyError(
                "expansion and d_sae are both given, but each decides the number of features",
                fix="keep one of them",
            )
        if self.d_sae is not None and self.k > self.d_sae:
            raise MechstudyError(
                f"k = {self.k} active features out of d_sae = {self.d_sae} is impossible",
                fix=f"k of at most {self.d_sae}",
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> DictionaryConfig:
        penalties = PENALTIES_OF[self.activation]
        for name, value in (("penalty", self.penalty), ("coefficient", self.coefficient)):
            if value is not None and not penalties:
                raise MechstudyError(
                    f"{self.activation} has no {name}: its sparsity is k", where=name, fix=f"remove {name}"
                )
        if self.penalty is not None and self.penalty not in penalties:
            raise MechstudyError(
                f"{self.activation} has no penalty {self.penalty!r}",
                where="penalty",
                fix=f"one of {', '.join(penalties)}",
            )
        if self.matryoshka and self.activation in ("relu", "gated"):
            raise MechstudyError(
                f"matryoshka does not support {self.activation}", where="matryoshka", fix="topk, batchtopk or jumprelu"
            )
        if (self.n_sites > 1) != (self.kind in ("crosscoder", "clt")):
            raise MechstudyError(
                f"a {self.kind} reads {'one site' if self.n_sites > 1 else 'several sites'}, not {self.n_sites}",
                where="n_sites",
                fix="kind: crosscoder or clt" if self.n_sites > 1 else "n_sites: as many sites as the rows hold",
            )
        if self.kind == "clt" and (self.matryoshka or self.activation in ("topk", "gated")):
            raise MechstudyError(
                f"a clt does not support {'matryoshka' if self.matryoshka else self.activation}",
                where="matryoshka" if self.matryoshka else "activation",
                fix="batchtopk, jumprelu or relu, without matryoshka",
            )
        shares = self.matryoshka if isinstance(self.matryoshka, tuple) else ()
        if shares and (sorted(set(shares)) != list(shares) or shares[0] <= 0 or shares[-1] != 1):
            raise MechstudyError(
                f"prefixes {list(shares)} do not rise to 1", where="matryoshka", fix="for example [0.125, 0.5, 1]"
            )
        return self

    def resolved_penalty(self) -> str:
        """The penalty, or the activation's default; "" if it has none."""
        return self.penalty or next(iter(PENALTIES_OF[self.activation]), "")

    def prefixes(self, n_features: int) -> tuple[int, ...]:
        """Matryoshka's prefixes as numbers of features; () for a plain dictionary."""
        if self.matryoshka is False:
            return ()
        shares = MATRYOSHKA if self.matryoshka is True else self.matryoshka
        return tuple(sorted({max(1, round(share * n_features)) for share in shares}))

    def width(self, d_in: int) -> int:
        """Number of features F for inputs of width `d_in` (of all sites together).

        Raises:
            MechstudyError: k exceeds it, or sites cannot have equal shares.
        """
        if d_in % self.n_sites:
            raise MechstudyError(
                f"rows of {d_in} columns do not hold {self.n_sites} sites of equal width", where="n_sites"
            )
        per_site = d_in if self.kind == "clt" else d_in // self.n_sites
        expansion = 4.0 if self.expansion is None else self.expansion
        width = self.d_sae if self.d_sae is not None else max(1, round(per_site * expansion))
        if self.kind == "clt" and width % self.n_sites:
            raise MechstudyError(
                f"{width} features cannot be shared out evenly among {self.n_sites} sites", where="d_sae",
                fix=f"a multiple of {self.n_sites}",
            )  # fmt: skip
        if self.k > width:
            raise MechstudyError(
                f"k = {self.k} active features out of d_sae = {width} is impossible",
                where="k",
                facts={"input width": str(d_in), "expansion": str(self.expansion)},
                fix=f"k of at most {width}, or a larger expansion",
            )
        return width


@_in_help
class TrainConfig(Config):
    """The recipe. Fields left at None follow rules (`resolved_lr` and the other `resolved_` methods).

    A linear decay over half of the steps beats a fifth by .001 to .006 of FVU (a million rows of SmolLM2-135M). Biases
    of the encoder learn three times as fast as `lr`, and so do decoder rows that are kept at unit length
    (`optimizer.relative_rates`). Sums, master weights and the optimizer are float32, whatever the precision.
    """

    optional: ClassVar[frozenset[str]] = frozenset({"frozen"})

    steps: int = Field(default=2_000, ge=1, description="batches to train on")
    batch_size: int = Field(default=2_048, ge=1, description="rows of a batch")
    lr: float | None = Field(
        default=None, gt=0, description="peak learning rate of Adam; without it, by the number of features and steps"
    )
    warmup_steps: int | None = Field(
        default=None, ge=0, description="steps over which the rate rises; without it 1,000, at most a twentieth of all"
    )
    decay_share: float = Field(
        default=0.5, ge=0, le=1, description="share of the steps over which linear falls to zero"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear",
        description="of the rate after the warm-up: linear (flat, then falling), cosine (to zero over all steps) or "
        "constant",
    )
    clip: float = Field(default=1.0, gt=0, description="largest norm of a step's gradient; longer ones are shortened")
    accumulate: int = Field(
        default=1, ge=1,
        description="parts in which a batch is processed, for less memory; BatchTopK and L0 are then taken over each "
        "part instead of the batch",
    )  # fmt: skip
    revive: Literal["aux", "resample", "off"] = Field(
        default="aux",
        description="how dead features are revived: aux (auxiliary loss, Gao et al. 2024; a clt has none), resample "
        "(re-initialised at badly reconstructed rows, every dead_after_rows; Bricken et al. 2023) or off",
    )
    tf32: bool = Field(default=True, description="on CUDA, float32 products may use TF32")
    aux_alpha: float = Field(default=1 / 32, ge=0, description="weight of the auxiliary loss")
    aux_k: int | None = Field(
        default=None, ge=1, description="dead features of a row in the auxiliary loss; without it half the output width"
    )
    dead_after_rows: int | None = Field(
        default=None, ge=1,
        description="rows without firing that make a feature dead; without it 10M, at most a sixty-fourth of all rows",
    )  # fmt: skip
    checkpoint_every: int = Field(default=1_000, ge=1, description="steps between checkpoints")
    precision: Precision = Field(
        default="auto",
        description="of the factors of all products: float32, bfloat16, or auto, the faster of the two on this machine",
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1,
        description="decay of a moving average of the weights, which becomes the dictionary",
    )  # fmt: skip
    health: HealthConfig = Field(
        default=HealthConfig(),
        description="action on unhealthy rows or training: off, warn, correct or stop, for all findings or by kind, "
        "such as {dead: stop}",
    )
    non_finite: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="rows with NaN or infinity: refuse ends the training, skip leaves them out and counts them",
    )
    log_every: int = Field(default=50, ge=1, description="steps between logged scalars, and between health checks")
    tensorboard: bool = Field(default=True, description="log scalars for TensorBoard too")
    seed: int = Field(default=0, ge=0, description="of the initial weights, and of the order of rows in memory")
    frozen: Frozen | None = Field(
        default=None,
        description="matrix that keeps its random initial weights, for a control; biases and all else are trained",
    )

    @model_validator(mode="after")
    def _stays_frozen(self) -> TrainConfig:
        if self.frozen is not None and self.revive == "resample":
            raise MechstudyError(
                f"resampling would change the frozen {self.frozen}", where="revive", fix="revive: aux or off"
            )
        return self

    def resolved_lr(self, n_features: int) -> float:
        """Peak learning rate of Adam: 2e-4 / sqrt(F / 2^14) (OpenAI, sparsify) for runs of 50,000 steps or more.

        Shorter runs take more, by (50,000 / steps)^(2/3), at most 5e-3, or 5e-3 * sqrt(2,304 / F) where F is smaller.
        Measured (with `decay_share` .2 and one rate for all weights) on SmolLM2-135M layer 15, mlp_out,
        batches of 2,048, BatchTopK, k = 32, held-out FVU. 488 steps: F = 2,304: .329 at 4.3e-3, .326 at 6e-3, .328 at
        8e-3; F = 4,608: .332 at 3e-3, .324 at 4.5e-3, .321 at 6e-3, .325 at 8e-3; F = 9,216: .353 at 2.1e-3, .329 at
        4e-3, .324 at 6e-3. TopK is best at 4.5e-3 (.314; .318 at 6e-3 with 14% dead). 1,952 steps, F = 4,608: .286 at
        1.9e-3, .279 at 3e-3, .279 at 4.5e-3 with 9% dead. In a synthetic world of 512 features and 2,000 steps more of
        them are found the larger it is: MCC .73 at 3e-3, .75 at 5e-3, .77 at 8e-3, .79 at 1.2e-2.
        """
        if self.lr is not None:
            return self.lr
        haste = float(max(1.0, 50_000 / self.steps) ** (2 / 3))
        most = 5e-3 * max(1.0, math.sqrt(2_304 / n_features))
        return min(most, haste * 2e-4 / math.sqrt(n_features / 2**14))

    def resolved_warmup(self) -> int:
        """Warm-up steps: 1,000, but never more than a twentieth of the run."""
        return self.warmup_steps if self.warmup_steps is not None else min(1_000, self.steps // 20)

    def resolved_aux_k(self, d_out: int) -> int:
        """Dead features used per row by the auxiliary loss: half the output width."""
        return self.aux_k if self.aux_k is not None else max(1, d_out // 2)

    def resolved_dead_after(self) -> int:
        """Rows without firing after which a feature is dead: 10M, or a sixty-fourth of a shorter run.

        Measured on a million rows of SmolLM2-135M layer 15, F = 4,608: an eighth, a sixteenth, a thirty-second and a
        sixty-fourth of the run leave 9.1, 8.7, 6.2 and 1.3% dead (TopK; FVU .316 to .315), 2.8, 3.0, 1.7 and .7%
        (BatchTopK; FVU .323 to .324). In a synthetic world an eighth, a thirty-second and a sixty-fourth find features
        at MCC .79, .88 and .91.
        """
        if self.dead_after_rows is not None:
            return self.dead_after_rows
        return min(10_000_000, max(1, self.steps * self.batch_size // 64))

    def threshold_rate(self) -> float:
        """Weight of the newest batch in BatchTopK's running threshold: 100 batches, or a fortieth of a shorter run.

        Kept activations shrink during training, so a longer window would set the threshold too high (L0 20 for k = 32
        after 400 steps).
        """
        return max(0.01, min(0.2, 40 / self.steps))

    def lr_factor(self, step: int) -> float:
        """Share of the peak learning rate at `step` (0-based): a linear warm-up, then `schedule`."""
        warmup, decay = self.resolved_warmup(), round(self.steps * self.decay_share)
        factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
        left = self.steps - step
        if self.schedule == "cosine":
            return factor * 0.5 * (1.0 - math.cos(math.pi * left / self.steps))
        return factor * min(1.0, left / (decay + 1)) if decay and self.schedule == "linear" else factor
