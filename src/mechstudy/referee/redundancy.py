"""Circuits that single ablations misjudge: a head with a backup, and heads that a third one opposes."""

from __future__ import annotations

from numpy.random import Generator

from mechstudy.referee.compiler import SHARP, HeadTask, Match, Program
from mechstudy.referee.drafts import Draft, known_program, shuffled
from mechstudy.referee.known_circuit import KnownCircuit
from mechstudy.referee.residual import Variables
from mechstudy.referee.words import numbered_words

N_WORDS, N_POSITIONS, N_LAYERS = 20, 8, 4
NAMES, FILLERS, END = range(1, 9), range(9, 19), 19
WORDS = numbered_words(N_WORDS)


def backup(seed: int = 0) -> KnownCircuit:
    """Copies the one name: a name mover, and a later head that attends to names that nobody has written yet.

    On a whole prompt the backup attends to the first token and writes nothing, so replacing it alone changes nothing.
    With the mover's output that of the corrupted prompt, it writes the name itself: half of the contrast remains.
    """
    v = Variables(token=N_WORDS, position=N_POSITIONS, one=1, out=N_WORDS)
    value, written = v.rows("token", NAMES), v.rows("out", NAMES)
    unwritten = (
        Match(v.rows("one"), v.sum_of("token", NAMES), 2 * SHARP),
        Match(written, value, -2 * SHARP),
        Match(v.rows("one"), v.rows("token", [0]), SHARP),
    )
    heads = (
        HeadTask(1, 1, (Match(v.rows("one"), v.sum_of("token", NAMES), SHARP),), value, written),
        HeadTask(3, 2, unwritten, value, written),
    )
    return known_program(
        "backup",
        "a name mover in layer 1, and a head in layer 3 that does its work when it is replaced",
        Program(WORDS, N_POSITIONS, N_LAYERS, v, heads),
        seed,
        _draw,
        ("head.1.1@last",),
        (("head.1.1", "head.3.2", "last"), ("head.1.1", "logits", "last")),
    )


def opposed(seed: int = 0) -> KnownCircuit:
    """Copies the one name: two name movers in different layers, and a head that takes one name's worth away again.

    One mover alone keeps as much of the contrast as the whole circuit, if the negative head is replaced as well.
    """
    v = Variables(token=N_WORDS, position=N_POSITIONS, one=1, out=N_WORDS)
    value, written = v.rows("token", NAMES), v.rows("out", NAMES)
    names = (Match(v.rows("one"), v.sum_of("token", NAMES), SHARP),)
    heads = (
        HeadTask(0, 3, names, value, written),
        HeadTask(1, 1, names, value, written),
        HeadTask(2, 0, names, value, -written),
    )
    nodes = ("head.0.3", "head.1.1", "head.2.0")
    return known_program(
        "opposed",
        "two name movers and a negative one, in layers 0 to 2 of 4",
        Program(WORDS, N_POSITIONS, N_LAYERS, v, heads),
        seed,
        _draw,
        tuple(f"{node}@last" for node in nodes),
        tuple((node, "logits", "last") for node in nodes),
    )


def _draw(rng: Generator) -> Draft:
    """``.. name .. end``: fillers around one name, exchanged for another in the corrupted prompt."""
    name, other, *_ = shuffled(rng, NAMES)
    before, after = (int(n) for n in rng.integers(1, 3, 2))
    fill = shuffled(rng, FILLERS)
    rows = [[0, *fill[:before], word, *fill[before : before + after], END] for word in (name, other)]
    return Draft(rows[0], rows[1], (name, other), {"name": 1 + before, "last": len(rows[0]) - 1})
