"""How many runs a verdict takes. Torch-free."""

from __future__ import annotations

from mechstudy.verdict.config import VerdictConfig

_SIZES = 10  # of MIB
_BETWEEN = 6  # that are tried between two of these
_GROUPS = 8  # of members, at most
_RIVALS = 4  # by other methods
CALLS = 40  # of the model for each length of prompts: donors, gradients, kept circuits; each reads all weights
DISTINCT = 10  # features of a layer that are active on some prompt, for each that is active at a token
_SPECIFICATIONS = 13  # all, none, the circuit, its complement, three rankings of three sizes


DIFFERING = 0.5  # of a prompt, the tokens from its first difference on; in the demo .62 and .28


def circuits_run(c: VerdictConfig, train: int, test: int, behaviours: int) -> int:
    """Whole prompts' worth of runs with some circuit kept: in the choice, for every criterion, on other behaviours.

    Replaced by the corrupted prompt's values, only what comes after the first difference is run.
    """
    primary = _SPECIFICATIONS + 1 + _SIZES + _GROUPS + 2 * c.n_random + _RIVALS + 3
    others = 2 * _SPECIFICATIONS
    donors = 6
    corrupted = train // 2 * (_SIZES + 1 + _BETWEEN) + test * primary
    return round(DIFFERING * corrupted) + test * (others + donors) + (2 + 1) * test * behaviours + 3 * train


def runs_of_variant(c: VerdictConfig, train: int, test: int) -> int:
    """The same for the circuit of other dictionaries: it is chosen, and five circuits of its nodes are kept."""
    return round(DIFFERING * (train // 2 * (_SIZES + 1 + _BETWEEN) + 5 * test)) + 2 * test + 4 * train
