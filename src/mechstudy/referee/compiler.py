"""Compiles programs of attention heads and MLPs into GPT-2 models, among components that do something else.

A program reads and writes named variables of the residual stream (in the manner of RASP and Tracr, Weiss et al.
2106.06981, Lindner et al. 2301.05062). The coordinates are then rotated at random, so that no axis of the model means
anything. Every head and MLP without a task, and every free neuron of an MLP with one, gets random weights: it reads all
variables, so it differs between clean and corrupted prompts, and it writes

- at full size into coordinates that no task and no logit reads;
- ``nudge`` of it into variables that only decide where heads attend, by less than their margin;
- ``leak`` of it anywhere else, so that its effect on the answers is tiny, not zero.

Approximate is only this: softmax attention of finite sharpness, these leaks, and LayerNorm. That has a very large
epsilon and weights that make up for it: it divides by sqrt(epsilon + variance), a constant to about 1e-8. All weights
are in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.core.seeds import torch_generator
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.loading import load_model
from mechstudy.referee.residual import Variables
from mechstudy.referee.words import word_tokenizer

SHARP = 20.0  # a score that leaves e^-20 of attention elsewhere
EPSILON = 1e8  # of LayerNorm, against variances of at most a few units


@dataclass(frozen=True, eq=False)
class Match:
    """A term of an attention score: ``strength`` x (what the query reads) . (what the key reads)."""

    query_ND: Float[Tensor, "n d"]
    key_ND: Float[Tensor, "n d"]
    strength: float


@dataclass(frozen=True, eq=False)
class HeadTask:
    """A head: where it attends (scores are sums of matches), what it reads there, and where it writes that."""

    layer: int
    head: int
    matches: tuple[Match, ...]
    value_ND: Float[Tensor, "n d"]
    write_ND: Float[Tensor, "n d"]


@dataclass(frozen=True, eq=False)
class MlpTask:
    """An MLP of ReLU neurons: each holds relu(read . x + bias), and adds that much of its row of ``write_FD``."""

    layer: int
    read_FD: Float[Tensor, "f d"]
    bias_F: Float[Tensor, " f"]
    write_FD: Float[Tensor, "f d"]


@dataclass(frozen=True)
class Noise:
    """Components without a task: coordinates they write to, their size, nudges, leaks, and neurons of each MLP."""

    width: int = 24
    size: float = 0.5
    nudge: float = 0.03
    leak: float = 1e-5
    neurons: int = 32


@dataclass(frozen=True, eq=False)
class Program:
    """What a model computes.

    Args:
        words: the vocabulary.
        n_positions: most tokens of a prompt.
        n_layers: layers.
        variables: of the residual stream; ``token`` and ``position`` are one-hot, ``one`` is 1, and ``out`` holds the
            logits, a coordinate for each word.
        heads: heads with a task.
        mlps: MLPs with a task.
        nudged: variables that only decide where heads attend.
        n_heads: heads of a layer.
        noise: the components without a task.
        logit_size: what the logits are multiplied by.
    """

    words: tuple[str, ...]
    n_positions: int
    n_layers: int
    variables: Variables
    heads: tuple[HeadTask, ...]
    mlps: tuple[MlpTask, ...] = ()
    nudged: tuple[str, ...] = ()
    n_heads: int = 4
    noise: Noise = field(default_factory=Noise)
    logit_size: float = 5.0


def compile_program(program: Program, seed: int, name: str) -> LanguageModel:
    """The model of a program; the seed draws the rotation and the components without a task.

    Raises:
        MechstudyError: two tasks of one component, or one outside of the model.
    """
    _check(program)
    generator = torch_generator(seed, name, "weights")
    writes = _Writes(program, generator)
    heads = {(task.layer, task.head): task for task in program.heads}
    for place in ((layer, head) for layer in range(program.n_layers) for head in range(program.n_heads)):
        heads.setdefault(place, writes.random_head(*place))
    d_mlp = max([0, *(len(task.bias_F) for task in program.mlps)]) + program.noise.neurons
    mlps = [writes.mlp(layer, d_mlp) for layer in range(program.n_layers)]
    slots = max(sum(len(m.query_ND) for m in task.matches) for task in heads.values())
    slots = max(slots, *(len(task.value_ND) for task in heads.values()))
    head_dim = max(slots, -(-(writes.width + 1) // program.n_heads))
    basis_DM = _isometry(program.n_heads * head_dim, writes.width, generator)
    hf: Any = _empty_model(program, head_dim, d_mlp)
    with torch.no_grad():
        _fill(hf, program, writes, basis_DM)
        for (layer, head), task in heads.items():
            _fill_head(hf.transformer.h[layer].attn, task, head, head_dim, writes, basis_DM)
        for layer, mlp in enumerate(mlps):
            block = hf.transformer.h[layer].mlp
            block.c_fc.weight.copy_(basis_DM @ writes.wide(mlp.read_FD).T)
            block.c_fc.bias.copy_(mlp.bias_F)
            block.c_proj.weight.copy_(writes.wide(mlp.write_FD) @ basis_DM.T)
    return load_model(hf, word_tokenizer(program.words), name=name)


def _check(program: Program) -> None:
    places = [(task.layer, task.head) for task in program.heads]
    layers = [task.layer for task in program.mlps]
    outside = [p for p in places if not (0 <= p[0] < program.n_layers and 0 <= p[1] < program.n_heads)]
    if len(set(places)) < len(places) or len(set(layers)) < len(layers):
        raise MechstudyError("two tasks have one head or one MLP")
    if outside or any(not 0 <= layer < program.n_layers for layer in layers):
        raise MechstudyError(
            "a task is outside of the model", facts={"model": f"{program.n_layers} layers of {program.n_heads} heads"}
        )


class _Writes:
    """Components without a task, in the program's coordinates followed by those that nothing else reads."""

    def __init__(self, program: Program, generator: torch.Generator) -> None:
        self._program, self._generator = program, generator
        self.width = program.variables.width + program.noise.width
        self._nudged_D = torch.zeros(program.variables.width, dtype=torch.bool)
        for name in program.nudged:
            self._nudged_D[program.variables.slices[name]] = True

    def wide(self, maps_ND: Tensor) -> Tensor:
        """Maps of the program's coordinates as maps of all."""
        return torch.nn.functional.pad(maps_ND, (0, self.width - maps_ND.shape[-1]))

    def random_head(self, layer: int, head: int, n: int = 8) -> HeadTask:
        """A head that attends and reads at random."""
        query, key = self._draw(n, self.width) / 2, self._draw(n, self.width) / 2
        value = self._draw(n, self.width) * self._program.noise.size / n**0.5
        return HeadTask(layer, head, (Match(query, key, 0.5),), value, self._written(n))

    def mlp(self, layer: int, d_mlp: int) -> MlpTask:
        """A layer's MLP: neurons with a task first, then random ones."""
        task = next((task for task in self._program.mlps if task.layer == layer), None)
        n = d_mlp - (0 if task is None else len(task.bias_F))
        read, bias = self._draw(n, self.width) / 2, self._draw(n) / 2
        write = self._written(n) * self._program.noise.size / max(n, 1) ** 0.5
        if task is not None:
            read, bias = torch.cat([self.wide(task.read_FD), read]), torch.cat([task.bias_F, bias])
            write = torch.cat([self.wide(task.write_FD), write])
        return MlpTask(layer, read, bias, write)

    def _written(self, n: int) -> Tensor:
        """Random directions of length about 1, nearly all of them in coordinates that nothing reads."""
        noise = self._program.noise
        of_noise = self._draw(n, noise.width) / noise.width**0.5
        of_variables = self._draw(n, self._program.variables.width) * torch.where(
            self._nudged_D, noise.nudge, noise.leak
        )
        return torch.cat([of_variables, of_noise], 1)

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64)


def _isometry(d: int, width: int, generator: torch.Generator) -> Float[Tensor, "d m"]:
    """Random orthonormal columns that are orthogonal to (1, ..., 1), so that centring leaves what they carry."""
    columns = torch.randn(d, width + 1, generator=generator, dtype=torch.float64)
    columns[:, 0] = 1
    orthonormal: Tensor = torch.linalg.qr(columns).Q
    return orthonormal[:, 1:]


def _empty_model(program: Program, head_dim: int, d_mlp: int) -> transformers.GPT2LMHeadModel:
    config = transformers.GPT2Config(
        vocab_size=len(program.words),
        n_positions=program.n_positions,
        n_embd=program.n_heads * head_dim,
        n_layer=program.n_layers,
        n_head=program.n_heads,
        n_inner=d_mlp,
        activation_function="relu",
        layer_norm_epsilon=EPSILON,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        return transformers.GPT2LMHeadModel(config).double()


def _fill(hf: Any, program: Program, writes: _Writes, basis_DM: Tensor) -> None:
    """Sets everything but heads and MLPs."""
    for name, parameter in hf.named_parameters():
        is_norm = ".ln_" in name and name.endswith("weight")
        parameter.fill_(EPSILON**0.5 if is_norm else 0.0)
    v = program.variables
    tokens = torch.stack([v.vector({"token": t}) for t in range(len(program.words))])
    places = torch.stack([v.vector({"position": p, "one": 1.0}) for p in range(program.n_positions)])
    hf.transformer.wte.weight.copy_(writes.wide(tokens) @ basis_DM.T)
    hf.transformer.wpe.weight.copy_(writes.wide(places) @ basis_DM.T)
    hf.lm_head.weight.copy_(program.logit_size * writes.wide(v.rows("out")) @ basis_DM.T)


def _fill_head(attn: Any, task: HeadTask, head: int, head_dim: int, writes: _Writes, basis_DM: Tensor) -> None:
    """Sets a head; GPT-2 divides scores by the root of the head's width, and keeps weights as [in, out]."""
    query = torch.cat([m.strength * head_dim**0.5 * m.query_ND for m in task.matches])
    key = torch.cat([m.key_ND for m in task.matches])
    d = len(basis_DM)
    for part, maps_ND in enumerate((query, key, task.value_ND)):
        first = part * d + head * head_dim
        attn.c_attn.weight[:, first : first + len(maps_ND)] = basis_DM @ writes.wide(maps_ND).T
    rows = slice(head * head_dim, head * head_dim + len(task.write_ND))
    attn.c_proj.weight[rows] = writes.wide(task.write_ND) @ basis_DM.T


def neurons_of(tasks: Sequence[tuple[Tensor, float, Tensor]], layer: int) -> MlpTask:
    """An MLP of neurons that are each given by what it reads [1, D], its bias, and what it writes [1, D]."""
    read, bias, write = zip(*tasks, strict=True)
    return MlpTask(layer, torch.cat(read), torch.tensor(bias, dtype=torch.float64), torch.cat(write))
