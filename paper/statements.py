"""What the text says of a run in words: each statement with the test that the run must pass for it to be printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paper.finished import FinishedRun


def statements(run: FinishedRun) -> dict[str, bool]:
    """Whether the run bears out each statement; one whose numbers the run lacks counts as not borne out."""
    return {name: _tried(test, run) for name, test in STATEMENTS.items()}


def _tried(test: Callable[[FinishedRun], bool], run: FinishedRun) -> bool:
    try:
        return bool(test(run))
    except (KeyError, TypeError, StopIteration):
        return False


def _verdicts(run: FinishedRun) -> list[Mapping[str, Any]]:
    return [run.summary["verdicts"][name] for name in run.behaviours]


def _state(run: FinishedRun, criterion: str) -> list[str]:
    return [str(verdict["criteria"][criterion]["state"]) for verdict in _verdicts(run)]


def _f(run: FinishedRun, which: int, rival: str) -> float:
    rows = run.verdict(run.behaviours[which])["rivals"]
    return float(next(row["f"] for row in rows if row["circuit"] == rival))


def _replaced(run: FinishedRun, which: int, by: str) -> float:
    rows = run.verdict(run.behaviours[which])["by_replacement"]
    return float(next(row["f"] for row in rows if row["replaced_by"] == by))


def _patched(run: FinishedRun, which: int) -> tuple[float, float]:
    """The clean prompts' mean difference of logits, and what it is when the group is patched."""
    summary = run.unit("intervene", run.behaviours[which]).json("summary.json")
    return summary["clean_mean"], summary["clean_mean"] + summary["tests"]["patching"]["effect"]


def _edges(run: FinishedRun, which: int) -> Mapping[str, Any]:
    edges: Mapping[str, Any] = run.summary["edges"][run.behaviours[which]]
    return edges


STATEMENTS: Mapping[str, Callable[[FinishedRun], bool]] = {
    "both_partly": lambda run: all(verdict["outcome"] == "partly" for verdict in _verdicts(run)),
    "both_carry": lambda run: _state(run, "sufficiency") == _state(run, "necessity") == ["met", "met"],
    "robustness_and_specificity_fail": lambda run: (
        _state(run, "robustness") == _state(run, "specificity") == ["not met", "not met"]
    ),
    "eap_ig_is_closest": lambda run: all(
        _f(run, i, "EAP-IG") > max(_f(run, i, other) for other in ("gradient alone", "difference of means"))
        for i in range(2)
    ),
    "activations_carry_nothing": lambda run: all(abs(_f(run, i, "top activations")) < 0.05 for i in range(2)),
    "b_needs_the_contrast": lambda run: _replaced(run, 1, "mean") < 0.5 <= _replaced(run, 0, "mean"),
    "a_turns_round": lambda run: _patched(run, 0)[1] < 0 < _patched(run, 1)[1],
    "controls_are_small": lambda run: all(
        abs(test["control_effect"]) < 0.1
        for name in run.behaviours
        for test in run.summary["interventions"][name].values()
    ),
    "graphs_add_up": lambda run: all(
        run.summary["graphs"][name]["conservation_residual_max"] < 1e-4 for name in run.behaviours
    ),
    "frozen_edges_agree": lambda run: all(_edges(run, i)["spearman_frozen"] > 0.99 for i in range(2)),
    "b_patterns_are_worse": lambda run: (
        _edges(run, 1)["qk"]["spearman_total_live"]
        < min(_edges(run, 1)["spearman_total_live"], _edges(run, 0)["qk"]["spearman_total_live"]) - 0.1
    ),
    "mlp_0_is_shared": lambda run: all(
        any(str(member["node"]).startswith("mlp.0@") for member in run.verdict(name)["members"])
        for name in run.behaviours
    ),
}
