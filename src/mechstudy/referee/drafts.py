"""Known circuits of compiled programs: prompts drawn by seed, and true nodes and edges by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.components import Components, component_at
from mechstudy.circuits.named_positions import NamedPositions
from mechstudy.core.seeds import numpy_generator
from mechstudy.referee.compiler import Program, compile_program
from mechstudy.referee.known_circuit import EdgeAt, KnownCircuit
from mechstudy.referee.words import pair_of

N_PAIRS = 12  # of each split


@dataclass(frozen=True)
class Draft:
    """A prompt pair as word numbers, without its name."""

    clean: Sequence[int]
    corrupted: Sequence[int]
    answers: tuple[int, int]
    positions: Mapping[str, int]


Draw = Callable[[Generator], Draft]


def known_program(
    name: str,
    about: str,
    program: Program,
    seed: int,
    draw: Draw,
    nodes: Sequence[str],
    edges: Sequence[tuple[str, str, str]],
) -> KnownCircuit:
    """A compiled program as a known circuit; its universe are all heads and MLPs at the prompts' positions.

    Args:
        name: of the circuit, and of everything that is drawn for it.
        about: what it does.
        program: what its model computes.
        seed: of prompts and of components without a task.
        draw: draws a pair.
        nodes: the true components, ``head.0.1@last``.
        edges: source, target and position of true edges, ``("head.0.1", "mlp.2", "last")``.
    """
    model = compile_program(program, seed, name)
    train, test = (drawn_pairs(name, split, program.words, seed, draw) for split in ("train", "test"))
    positions = NamedPositions.of([*train, *test])
    return KnownCircuit(
        name,
        about,
        model,
        Components(model, positions),
        (frozenset(map(component_at, nodes)),),
        train,
        test,
        frozenset(EdgeAt(*edge) for edge in edges),
    )


def drawn_pairs(
    name: str, split: str, words: Sequence[str], seed: int, draw: Draw, n: int = N_PAIRS
) -> tuple[PromptPair, ...]:
    """Pairs of a split, no two with the same clean prompt."""
    rng = numpy_generator(seed, name, f"prompts/{split}")
    drafts: dict[tuple[int, ...], Draft] = {}
    while len(drafts) < n:
        draft = draw(rng)
        drafts.setdefault(tuple(draft.clean), draft)
    return tuple(
        pair_of(f"{name}-{split}", i, words, d.clean, d.corrupted, d.answers, d.positions)
        for i, d in enumerate(drafts.values())
    )


def shuffled(rng: Generator, words: Sequence[int]) -> list[int]:
    """The words in random order."""
    return [int(word) for word in rng.permutation(list(words))]
