"""States of criteria, and the rule that makes a verdict of them."""

import pytest

from mechstudy.statistics.bootstrap import Estimate
from mechstudy.statistics.clusters import ALL_EQUAL, ONE_GROUP
from mechstudy.verdict.criteria import QUESTIONS, Criterion, conclude

THRESHOLD = 0.5


def measured(value, low=None, high=None, missing=None):
    return Estimate(value, None if low is None else (low, high), 20, 10, missing)


def criterion(state, name="sufficiency", **options):
    interval = {"met": (0.6, 0.8), "not met": (0.1, 0.3), "open": (0.4, 0.8)}
    low, high = interval.get(state, (None, None))
    value = None if state == "not measured" else (low + high) / 2
    return Criterion(name, measured(value, low, high), THRESHOLD, **options)


def all_met(**states):
    return [criterion(states.get(name, "met"), name) for name in QUESTIONS]


@pytest.mark.parametrize(
    ("estimate", "at_most", "itself", "state"),
    [
        (measured(0.7, 0.5, 0.9), False, False, "met"),
        (measured(0.7, 0.49, 0.9), False, False, "open"),
        (measured(0.3, 0.1, 0.49), False, False, "not met"),
        (measured(0.3, 0.1, 0.5), False, False, "open"),
        (measured(0.3, 0.1, 0.5), True, False, "met"),
        (measured(0.7, 0.51, 0.9), True, False, "not met"),
        (measured(0.7, 0.4, 0.9), True, False, "open"),
        (measured(None), False, False, "not measured"),
        (measured(0.7, missing=ONE_GROUP), False, False, "open"),
        (measured(0.7, missing=ALL_EQUAL), False, False, "met"),
        (measured(0.3, missing=ALL_EQUAL), False, False, "not met"),
        (measured(0.7, 0.2, 0.9), False, True, "met"),
        (measured(0.4, 0.2, 0.9), False, True, "not met"),
    ],
)
def test_the_interval_decides(estimate, at_most, itself, state):
    assert Criterion("sufficiency", estimate, THRESHOLD, at_most=at_most, itself=itself).state == state


def test_the_states_of_the_test_are_what_they_say():
    for state in ("met", "not met", "open", "not measured"):
        assert criterion(state).state == state


@pytest.mark.parametrize(
    ("states", "outcome"),
    [
        ({}, "holds"),
        ({"behaviour": "open"}, "not shown"),
        ({"behaviour": "not met", "sufficiency": "not met", "necessity": "not met"}, "not shown"),
        ({"sufficiency": "not met", "necessity": "not met"}, "refuted"),
        ({"sufficiency": "not met", "necessity": "open"}, "not shown"),
        ({"sufficiency": "not measured", "necessity": "not measured"}, "not shown"),
        ({"sufficiency": "open", "necessity": "open"}, "not shown"),
        ({"rivals": "open"}, "not shown"),
        ({"rivals": "not met"}, "not shown"),
        ({"sufficiency": "not met"}, "partly"),
        ({"necessity": "open"}, "partly"),
        ({"adversary": "not met"}, "partly"),
        ({"stability": "not met"}, "partly"),
        ({"robustness": "open"}, "partly"),
        ({"specificity": "not met"}, "partly"),
        ({"specificity": "not measured"}, "partly"),
    ],
)
def test_the_rule(states, outcome):
    found, why = conclude(all_met(**states))
    assert found == outcome
    if outcome == "partly":
        assert next(iter(states)) in why


def test_what_cannot_be_asked_of_a_study_does_not_count_against_it():
    criteria = [c for c in all_met() if c.name != "specificity"]
    criteria.append(criterion("not measured", "specificity", missing="the study has one behaviour"))
    assert conclude(criteria)[0] == "holds"
