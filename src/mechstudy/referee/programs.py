"""Hand-written circuits: induction, indirect objects, and small programs of two to four steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.random import Generator

from mechstudy.core.seeds import numpy_generator
from mechstudy.referee.compiler import SHARP, HeadTask, Match, Program, neurons_of
from mechstudy.referee.drafts import Draft, known_program, shuffled
from mechstudy.referee.known_circuit import KnownCircuit
from mechstudy.referee.residual import Variables
from mechstudy.referee.words import numbered_words


def _previous_token(v: Variables, head: int, n_words: int, n_positions: int, layer: int = 0) -> HeadTask:
    """Writes each position's previous word into ``previous``."""
    words, later, earlier = range(1, n_words), range(1, n_positions), range(n_positions - 1)
    here = Match(v.rows("position", later), v.rows("position", earlier), SHARP)
    return HeadTask(layer, head, (here,), v.rows("token", words), v.rows("previous", words))


def _at_start(v: Variables, strength: float) -> Match:
    """Attention to the first token, unless another score exceeds ``strength``."""
    return Match(v.rows("one"), v.rows("token", [0]), strength)


def induction(seed: int = 0) -> KnownCircuit:
    """``.. A B .. C D .. A`` is continued by B: a previous-token head, and a head that attends to what followed A."""
    n_words, n_positions = 20, 14
    words = range(1, n_words)
    v = Variables(token=n_words, position=n_positions, one=1, previous=n_words, out=n_words)
    same = Match(v.rows("token", words), v.rows("previous", words), SHARP)
    heads = (
        _previous_token(v, 1, n_words, n_positions),
        HeadTask(2, 2, (same,), v.rows("token", words), v.rows("out", words)),
    )

    def draw(rng: Generator) -> Draft:
        a, b, c, d, *others = shuffled(rng, words)
        first, second = ([a, b], [c, d]) if rng.random() < 0.5 else ([c, d], [a, b])
        fill = [int(n) for n in rng.integers(1, 3, 3)]
        parts = [others[: fill[0]], first, others[2 : 2 + fill[1]], second, others[4 : 4 + fill[2]]]
        clean = [0, *(word for part in parts for word in part), a]
        corrupted = [{a: c, c: a}.get(word, word) for word in clean[:-1]] + [a]
        at = {name: clean.index(word) for name, word in (("after1", b), ("after2", d), ("first", a), ("second", c))}
        return Draft(clean, corrupted, (b, d), {**at, "last": len(clean) - 1})

    return known_program(
        "induction",
        "a previous-token head in layer 0 and an induction head in layer 2 of 4",
        Program(numbered_words(n_words), n_positions, 4, v, heads, nudged=("previous",)),
        seed,
        draw,
        ("head.0.1@after1", "head.0.1@after2", "head.2.2@last"),
        (
            ("head.0.1", "head.2.2", "after1"),
            ("head.0.1", "head.2.2", "after2"),
            ("head.2.2", "logits", "last"),
        ),
    )


def ioi(seed: int = 0) -> KnownCircuit:
    """Of two names the one that occurs once: duplicate token, S-inhibition and name mover heads (2211.00593)."""
    n_words, n_positions = 20, 12
    words, names, fillers, end = range(1, n_words), range(1, 9), range(9, 19), 19
    v = Variables(
        token=n_words, position=n_positions, one=1, duplicate=n_words, is_duplicate=1, inhibit=n_words, out=n_words
    )
    here = v.rows("position")
    value = v.rows("token", words)
    duplicate = HeadTask(
        0,
        0,
        (
            Match(value, value, 2 * SHARP),
            Match(here, here, -2 * SHARP),  # not the token itself
            _at_start(v, SHARP),
        ),
        torch.cat([value, v.sum_of("token", words)]),
        torch.cat([v.rows("duplicate", words), v.rows("is_duplicate")]),
    )
    inhibition = [
        HeadTask(
            1,
            head,
            (Match(v.rows("one"), v.rows("is_duplicate"), SHARP), _at_start(v, SHARP / 2)),
            v.rows("duplicate", names),
            0.5 * v.rows("inhibit", names),
        )
        for head in (1, 3)
    ]
    of_names = Match(v.rows("one"), v.sum_of("token", names), SHARP)
    inhibited = Match(v.rows("inhibit", names), v.rows("token", names), -1.5 * SHARP)
    movers = [
        HeadTask(2, head, (of_names, inhibited), v.rows("token", names), 0.5 * v.rows("out", names)) for head in (0, 2)
    ]

    def draw(rng: Generator) -> Draft:
        indirect, subject, *_ = shuffled(rng, names)
        others = shuffled(rng, fillers)
        first, second = (indirect, subject) if rng.random() < 0.5 else (subject, indirect)
        before, between, after = (int(n) for n in rng.integers(1, 3, 3))
        start = [0, *others[:before], first, others[2], second, *others[3 : 3 + between]]
        clean = [*start, subject, *others[5 : 4 + after], end]
        corrupted = [*start, indirect, *others[5 : 4 + after], end]
        at = {"io": start.index(indirect), "s1": start.index(subject), "s2": len(start), "last": len(clean) - 1}
        return Draft(clean, corrupted, (indirect, subject), at)

    inhibitors, name_movers = ("head.1.1", "head.1.3"), ("head.2.0", "head.2.2")
    return known_program(
        "ioi",
        "a duplicate-token head, two S-inhibition heads and two name movers in layers 0 to 2 of 4",
        Program(
            numbered_words(n_words),
            n_positions,
            4,
            v,
            (duplicate, *inhibition, *movers),
            nudged=("is_duplicate", "inhibit"),
        ),
        seed,
        draw,
        ("head.0.0@s2", *(f"{head}@last" for head in (*inhibitors, *name_movers))),
        (
            *(("head.0.0", head, "s2") for head in inhibitors),
            *((source, target, "last") for source in inhibitors for target in name_movers),
            *((head, "logits", "last") for head in name_movers),
        ),
    )


def ioi_one_layer(seed: int = 0) -> KnownCircuit:
    """The same task in one layer: one head adds every name, one subtracts the last (after 2510.25013)."""
    n_words, n_positions = 16, 8
    names, fillers, end = range(1, 9), range(9, 15), 15
    v = Variables(token=n_words, position=n_positions, one=1, out=n_words)
    value = v.rows("token", names)
    heads = (
        HeadTask(0, 0, (Match(v.rows("one"), v.sum_of("token", names), SHARP),), value, v.rows("out", names)),
        HeadTask(0, 1, (Match(v.rows("one"), v.rows("position", [4]), SHARP),), value, -v.rows("out", names)),
    )

    def draw(rng: Generator) -> Draft:
        indirect, subject, *_ = shuffled(rng, names)
        others = shuffled(rng, fillers)
        start = [0, *((indirect, subject) if rng.random() < 0.5 else (subject, indirect)), others[0]]
        at = {"io": start.index(indirect), "s1": start.index(subject), "s2": 4, "last": 6}
        ends = [others[1], end]
        return Draft([*start, subject, *ends], [*start, indirect, *ends], (indirect, subject), at)

    return known_program(
        "ioi_one_layer",
        "a head that adds the names and one that subtracts the repeated one, in one layer",
        Program(numbered_words(n_words), n_positions, 1, v, heads),
        seed,
        draw,
        ("head.0.0@last", "head.0.1@last"),
        (("head.0.0", "logits", "last"), ("head.0.1", "logits", "last")),
    )


def lookup(seed: int = 0) -> KnownCircuit:
    """``k v k v .. k``: the value after the most recent occurrence of the key, and the word that it stands for."""
    n_words, n_positions = 16, 10
    words, keys, values = range(1, n_words), range(1, 8), range(8, n_words)
    v = Variables(token=n_words, position=n_positions, one=1, previous=n_words, found=n_words, out=n_words)
    of_position = sum((p * v.rows("position", [p]) for p in range(n_positions)), 0 * v.rows("one"))
    matches = (
        Match(v.rows("token", keys), v.rows("previous", keys), 4 * SHARP),
        Match(v.rows("one"), of_position, 6.0),  # of several matches the last
    )
    heads = (
        _previous_token(v, 3, n_words, n_positions),
        HeadTask(1, 0, matches, v.rows("token", values), v.rows("found", values)),
    )
    meaning = dict(zip(values, shuffled(numpy_generator(seed, "lookup", "meaning"), words), strict=False))
    neurons = [(2 * v.rows("found", [value]), -1.0, v.rows("out", [meaning[value]])) for value in values]

    def draw(rng: Generator) -> Draft:
        key, absent, *others = shuffled(rng, keys)
        of_pair = shuffled(rng, values)[:4]
        old, new = ((0, 2), (0, 3), (1, 3))[rng.integers(3)]
        at_pair = [key if i in (old, new) else others[i] for i in range(4)]
        clean = [0, *(word for two in zip(at_pair, of_pair, strict=True) for word in two), key]
        corrupted = list(clean)
        corrupted[1 + 2 * new] = absent
        at = {"old_value": 2 + 2 * old, "new_key": 1 + 2 * new, "new_value": 2 + 2 * new, "last": len(clean) - 1}
        return Draft(clean, corrupted, (meaning[of_pair[new]], meaning[of_pair[old]]), at)

    return known_program(
        "lookup",
        "a previous-token head, a head that finds the latest match, and an MLP that maps what it found",
        Program(numbered_words(n_words), n_positions, 3, v, heads, (neurons_of(neurons, 2),), nudged=("previous",)),
        seed,
        draw,
        ("head.0.3@new_value", "head.1.0@last", "mlp.2@last"),
        (
            ("head.0.3", "head.1.0", "new_value"),
            ("head.1.0", "mlp.2", "last"),
            ("mlp.2", "logits", "last"),
        ),
    )


def majority(seed: int = 0) -> KnownCircuit:
    """Which of two classes of words is more frequent: two heads count, an MLP compares, and saturates."""
    n_words, n_positions, n_counted = 16, 11, 9
    of_a, of_b, a, b, end = range(1, 7), range(7, 13), 13, 14, 15
    v = Variables(token=n_words, position=n_positions, one=1, count_a=1, count_b=1, out=n_words)
    counted = Match(v.rows("one"), v.sum_of("token", range(1, 13)), SHARP)
    heads = (
        HeadTask(0, 0, (counted,), v.sum_of("token", of_a), v.rows("count_a")),
        HeadTask(0, 2, (counted,), v.sum_of("token", of_b), v.rows("count_b")),
    )
    difference, answer = 2 * (v.rows("count_a") - v.rows("count_b")), v.rows("out", [a]) - v.rows("out", [b])
    step = neurons_of([(difference, 0.5, answer), (difference, -0.5, -answer)], 2)  # 0 to 1 between -1/4 and 1/4

    def draw(rng: Generator) -> Draft:
        n_most = int(rng.integers(6, 9))
        most, least = (of_a, of_b) if rng.random() < 0.5 else (of_b, of_a)
        of_most = [int(rng.choice(most)) for _ in range(n_most)]
        of_least = [int(rng.choice(least)) for _ in range(n_counted - n_most)]
        n_changed = 2 * n_most - n_counted
        order = rng.permutation(n_counted)
        clean = [*of_most, *of_least]
        corrupted = [*(int(rng.choice(least)) for _ in range(n_changed)), *of_most[n_changed:], *of_least]
        answers = (a, b) if most == of_a else (b, a)
        rows = [[0, *(row[i] for i in order), end] for row in (clean, corrupted)]
        return Draft(rows[0], rows[1], answers, {"last": n_counted + 1})

    return known_program(
        "majority",
        "two counting heads and an MLP that compares them with a saturating step",
        Program(numbered_words(n_words), n_positions, 3, v, heads, (step,)),
        seed,
        draw,
        ("head.0.0@last", "head.0.2@last", "mlp.2@last"),
        (("head.0.0", "mlp.2", "last"), ("head.0.2", "mlp.2", "last"), ("mlp.2", "logits", "last")),
    )


def threshold(seed: int = 0) -> KnownCircuit:
    """Whether at least five of nine words are of a class: a head counts, and a steep step decides.

    Near neither prompt has the step a slope, and it is too narrow for a few points of a path to meet it.
    """
    n_words, n_positions, n_counted, enough = 16, 11, 9, 5
    of_class, others, yes, no, end = range(1, 7), range(7, 13), 13, 14, 15
    v = Variables(token=n_words, position=n_positions, one=1, count=1, out=n_words)
    counted = Match(v.rows("one"), v.sum_of("token", range(1, 13)), SHARP)
    head = HeadTask(0, 1, (counted,), n_counted * v.sum_of("token", of_class), v.rows("count"))
    answer = v.rows("out", [yes]) - v.rows("out", [no])
    steep, low, high = 10.0, enough - 0.85, enough - 0.75  # 0 to 1 between them
    count = steep * v.rows("count")
    step = neurons_of([(count, -steep * low, answer), (count, -steep * high, -answer)], 2)

    def draw(rng: Generator) -> Draft:
        row = [
            *(int(w) for w in rng.choice(of_class, enough)),
            *(int(w) for w in rng.choice(others, n_counted - enough)),
        ]
        order, changed = rng.permutation(n_counted), list(row)
        changed[0] = int(rng.choice(others))
        rows = [[0, *(one[i] for i in order), end] for one in (row, changed)]
        if rng.random() < 0.5:
            return Draft(rows[1], rows[0], (no, yes), {"last": n_counted + 1})
        return Draft(rows[0], rows[1], (yes, no), {"last": n_counted + 1})

    return known_program(
        "threshold",
        "a counting head and an MLP with a steep step",
        Program(numbered_words(n_words), n_positions, 3, v, (head,), (step,)),
        seed,
        draw,
        ("head.0.1@last", "mlp.2@last"),
        (("head.0.1", "mlp.2", "last"), ("mlp.2", "logits", "last")),
    )


def pointer(seed: int = 0) -> KnownCircuit:
    """``m t .. n u .. t x .. u y``: the word that follows the other occurrence of the marked word."""
    n_words, n_positions = 20, 14
    words, marker, neutral, end = range(4, n_words), 1, 2, 3
    v = Variables(token=n_words, position=n_positions, one=1, previous=n_words, pointer=n_words, out=n_words)
    marked = Match(v.rows("one"), v.rows("previous", [marker]), 2 * SHARP)
    # It attends to what follows either occurrence, in equal parts: nothing may nudge ``previous``.
    pointed = Match(v.rows("pointer", words), v.rows("previous", words), SHARP)
    value = v.rows("token", words)
    heads = (
        _previous_token(v, 2, n_words, n_positions),
        HeadTask(1, 0, (marked, _at_start(v, SHARP)), value, v.rows("pointer", words)),
        HeadTask(2, 3, (pointed,), value, v.rows("out", words)),
    )

    def draw(rng: Generator) -> Draft:
        t, u, x, y, *others = shuffled(rng, words)
        marks = [[marker, t, others[0]], [neutral, u, others[1]]]
        ends = [[t, x], [u, y, others[2]]]
        if rng.random() < 0.5:
            marks.reverse()
        if rng.random() < 0.5:
            ends.reverse()
        clean = [0, *others[3 : 3 + int(rng.integers(0, 2))], *_joined([*marks, *ends]), end]
        corrupted = [{marker: neutral, neutral: marker}.get(word, word) for word in clean]
        at = {
            "marked": clean.index(marker) + 1,
            "unmarked": clean.index(neutral) + 1,
            "x": clean.index(x),
            "y": clean.index(y),
            "last": len(clean) - 1,
        }
        return Draft(clean, corrupted, (x, y), at)

    return known_program(
        "pointer",
        "a previous-token head, a head that fetches the marked word, and one that follows it, in layers 0 to 2 of 4",
        Program(numbered_words(n_words), n_positions, 4, v, heads, nudged=("pointer",)),
        seed,
        draw,
        ("head.0.2@marked", "head.0.2@unmarked", "head.1.0@last", "head.2.3@last"),
        (
            ("head.0.2", "head.1.0", "marked"),
            ("head.0.2", "head.1.0", "unmarked"),
            ("head.1.0", "head.2.3", "last"),
            ("head.2.3", "logits", "last"),
        ),
    )


def _joined(parts: Sequence[Sequence[int]]) -> list[int]:
    return [word for part in parts for word in part]
