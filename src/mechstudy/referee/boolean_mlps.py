"""Small MLPs that compute a Boolean function, and every circuit of neurons that is enough for it.

Several circuits can each explain such a network completely (Méloux et al. 2502.20914): here all subsets of neurons are
kept in turn, the others hold the corrupted prompt's values, and a subset is valid if every answer stays right. The
circuits are the valid subsets of which no part is valid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.donors import DonorSource
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.circuits.universe import NodeSet
from mechstudy.core.errors import MechstudyError
from mechstudy.core.seeds import numpy_generator, torch_generator
from mechstudy.dictionaries.neurons import Neurons
from mechstudy.interventions.feature_nodes import FeatureNodes
from mechstudy.interventions.features import FeatureAt
from mechstudy.interventions.keep_only import keep_only_values
from mechstudy.models.language_model import LanguageModel
from mechstudy.referee.compiler import HeadTask, Match, MlpTask, Noise, Program, compile_program
from mechstudy.referee.known_circuit import KnownCircuit
from mechstudy.referee.residual import Variables
from mechstudy.referee.words import BOS, pair_of

SHARP = 20.0
WORDS = (BOS, "no", "yes", "=")
FUNCTIONS: dict[str, tuple[int, Callable[..., bool]]] = {
    "xor": (2, lambda a, b: a != b),
    "majority3": (3, lambda a, b, c: a + b + c >= 2),
    "and_or": (3, lambda a, b, c: (a and b) or c),
}
MOST_NODES = 14  # of which all subsets are tried
N_POSITIONS = 8
MARGIN = 1e-3  # of the whole model's mean contrast: what a right answer must have, so that leaks decide nothing


def boolean_mlp(function: str, seed: int = 0, n_neurons: int = 8) -> KnownCircuit:
    """A one-layer model: heads copy the bits to the last position, a trained MLP computes the function of them.

    Nodes are the MLP's neurons at the last position, two of which are random and write nothing that matters.

    Args:
        function: a key of `FUNCTIONS`.
        seed: of training and of components without a task.
        n_neurons: neurons that are trained.

    Raises:
        MechstudyError: no such function, or training fails.
    """
    if function not in FUNCTIONS:
        raise MechstudyError(f"there is no function {function!r}", facts={"functions": ", ".join(FUNCTIONS)})
    name = f"boolean_{function}"
    n_bits, _ = FUNCTIONS[function]
    table_RB, value_R = truth_table(function)
    read_FB, bias_F, write_F = _trained(name, table_RB, value_R, n_neurons, seed)
    v = Variables(token=len(WORDS), position=N_POSITIONS, one=1, bits=n_bits, out=len(WORDS))
    heads = tuple(
        HeadTask(
            0,
            bit,
            (Match(v.rows("one"), v.rows("position", [1 + bit]), SHARP),),
            v.rows("token", [2]) - v.rows("token", [1]),
            v.rows("bits", [bit]),
        )
        for bit in range(n_bits)
    )
    no, yes = (v.rows("out", [answer]) for answer in (1, 2))
    mlp = MlpTask(0, read_FB @ v.rows("bits"), bias_F, write_F[:, None] * (yes - no))
    program = Program(WORDS, N_POSITIONS, 1, v, heads, (mlp,), noise=Noise(neurons=2))
    model = compile_program(program, seed, name)
    pairs = _pairs(name, function)
    universe = FeatureNodes(
        model,
        {0: Neurons(model, 0)},
        NamedPositions.of(pairs),
        [FeatureAt(0, neuron, "last") for neuron in range(n_neurons + 2)],
    )
    circuits = minimal_circuits(model, universe, pairs)
    return KnownCircuit(
        name,
        f"every minimal set of trained neurons that is enough for {function} of {n_bits} bits",
        model,
        universe,
        circuits,
        pairs,
        pairs,
        enumerated=True,
    )


def truth_table(function: str) -> tuple[Float64[Tensor, "r b"], Bool[Tensor, " r"]]:
    """Every input as -1 or 1, and the function's value."""
    n_bits, of_bits = FUNCTIONS[function]
    rows = list(product((False, True), repeat=n_bits))
    inputs = torch.tensor(rows, dtype=torch.float64) * 2 - 1
    return inputs, torch.tensor([bool(of_bits(*row)) for row in rows])


def minimal_circuits(
    model: LanguageModel, universe: NodeSet, pairs: Sequence[PromptPair]
) -> tuple[frozenset[FeatureAt], ...]:
    """Every set of nodes that keeps all answers right when kept alone, and of which no part does; smallest first.

    Raises:
        MechstudyError: too many nodes to try all subsets, or no answer needs a node.
    """
    n = len(universe.nodes)
    if n > MOST_NODES:
        raise MechstudyError(f"{n} nodes have {2**n:,} subsets", fix=f"at most {MOST_NODES} nodes")
    keep_CN = torch.tensor(list(product((False, True), repeat=n)))
    corrupted = DonorSource(model, [universe], "corrupted", universe.positions)
    values_CP = keep_only_values(model, pairs, universe, keep_CN, corrupted, batch_tokens=16_384)
    valid_KN = keep_CN[(values_CP > MARGIN * values_CP[-1].mean()).all(1)]
    valid_KN = valid_KN[valid_KN.sum(1).argsort(stable=True)]
    minimal: list[Tensor] = []
    for kept_N in valid_KN:
        if not any(bool((smaller_N <= kept_N).all()) for smaller_N in minimal):
            minimal.append(kept_N)
    if not minimal or not minimal[0].any():
        raise MechstudyError(f"the answers of {model.name} do not depend on the nodes")
    return tuple(frozenset(universe.nodes[i] for i in kept_N.nonzero().flatten().tolist()) for kept_N in minimal)


def _pairs(name: str, function: str) -> tuple[PromptPair, ...]:
    """Every two inputs with different values, in both orders."""
    table_RB, value_R = truth_table(function)
    rows = [[0, *(2 if bit > 0 else 1 for bit in row), 3] for row in table_RB.tolist()]
    at = {f"bit{i + 1}": i + 1 for i in range(table_RB.shape[1])} | {"last": table_RB.shape[1] + 1}
    of_value = [(2, 1) if value else (1, 2) for value in value_R.tolist()]
    ordered = [(i, j) for i, j in product(range(len(rows)), repeat=2) if value_R[i] != value_R[j]]
    numpy_generator(0, name, "order").shuffle(ordered)
    return tuple(pair_of(name, n, WORDS, rows[i], rows[j], of_value[i], at) for n, (i, j) in enumerate(ordered))


def _trained(
    name: str, table_RB: Tensor, value_R: Tensor, n_neurons: int, seed: int, steps: int = 600
) -> tuple[Float[Tensor, "f b"], Float[Tensor, " f"], Float[Tensor, " f"]]:
    """ReLU neurons, by full-batch Adam on a hinge loss; of several starts the first whose answers are all right."""
    target_R = value_R.double() * 2 - 1
    for start in range(20):
        draw = torch_generator(seed, name, f"training/{start}")
        shapes = ((n_neurons, table_RB.shape[1]), (n_neurons,), (n_neurons,))
        weights = [torch.randn(shape, generator=draw, dtype=torch.float64) * 0.7 for shape in shapes]
        read, bias, write = (weight.requires_grad_() for weight in weights)
        optimizer = torch.optim.Adam([read, bias, write], lr=0.02)
        with torch.enable_grad():
            for _ in range(steps):
                margin_R = target_R * (torch.relu(table_RB @ read.T + bias) @ write)
                loss = torch.relu(1.5 - margin_R).mean() + 1e-3 * sum(w.square().sum() for w in weights)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        if bool((margin_R > 0.5).all()):
            return read.detach(), bias.detach(), write.detach()
    raise MechstudyError(f"{name} was not learned", fix="more neurons, or another seed")
