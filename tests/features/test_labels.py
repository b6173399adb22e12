"""Rules of what features fire on: planted ones are found, and noise is not claimed."""

import numpy as np
import pytest

from mechstudy.features.labels import FEWEST, Label, claims, labels, separation
from mechstudy.features.rules import MAX_WORDS, Before, OfClass, Rule, Start, Text, Words, balanced_accuracy, induced

WORDS = [" the", " The", " cat", " cats", " dogs", " walking", "ing", " 7", "12", ",", ".", "\n", " (", " É"]
WORDS += [f" w{i}" for i in range(22)]
N, LENGTH = 12_800, 32


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def text():
    return Text(rng().integers(0, len(WORDS), (N // LENGTH, LENGTH)), dict(enumerate(WORDS)))


def rows():
    """All but first positions."""
    return np.arange(N)[np.arange(N) % LENGTH > 0]


def planted(text, rule, noise=0.0, seed=1):
    """Activations of a feature that fires where a rule holds, but for some rows."""
    places = np.arange(N)
    flipped = rng(seed).random(N) < noise
    fires = (rule.holds(text, places) ^ flipped) & (places % LENGTH > 0)
    return fires * rng(seed).uniform(1, 2, N)


RULES = [
    Rule((Words(0, ("the",)),)),
    Rule((Words(1, ("cat", "w3")),)),
    Rule((Words(2, (",",)),)),
    Rule((OfClass(0, "digits"),)),
    Rule((OfClass(1, "punctuation"),)),
    Rule((Before(("w5",)),)),
    Rule((Words(0, ("w1", "w2", "w3", "w4")), OfClass(1, "capitalised words"))),
    Rule((Words(0, ("w7", "w8", "w9")), Before(("the", "w10", "w11")))),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_planted_rule_is_found_and_claimed(text, rule):
    [label] = labels(text, [planted(text, rule)])
    assert label.claimed and label.score > 0.95 and label.recall > 0.9
    holds = rule.holds(text, rows())
    split = rows()[holds], rows()[~holds]
    assert separation(text, induced(text, *split), split) > 0.95


def test_words_of_a_rule_are_named_without_space_and_capitals(text):
    [label] = labels(text, [planted(text, RULES[0])])
    assert label.rule == "on «the»"
    assert (label.score, label.precision, label.recall) == (1, 1, 1)


def test_negative_activations_of_neurons_have_rules_too(text):
    [label] = labels(text, [0.01 * rng().normal(size=N) - planted(text, RULES[0])])
    assert (label.sign, label.rule, label.claimed) == (-1, "on «the»", True)


def test_noise_is_not_claimed_and_scores_by_chance(text):
    noise = [(rng(i).random(N) < 0.05) * rng(i).uniform(1, 2, N) for i in range(40)]
    made = labels(text, noise)
    assert sum(label.claimed for label in made) == 0
    scores = [label.score for label in made if label.score is not None]
    assert len(scores) > 10 and 0.45 < np.mean(scores) < 0.55


def test_a_rule_is_scored_against_the_same_tokens_elsewhere(text):
    """A feature of « the» after a comma: that it fires on « the» is true, and not enough."""
    context = Rule((Words(0, ("the",)), OfClass(1, "punctuation")))
    places = np.arange(N)
    fires = planted(text, context)
    strong, silent = places[fires > 0], places[(fires == 0) & (places % LENGTH > 0)]
    token = Rule((Words(0, ("the",)),))
    alone = separation(text, token, (strong, silent))
    [label] = labels(text, [fires])
    assert alone > 0.95, "against random tokens the token alone looks like an explanation"
    assert "after" in label.rule and label.score > 0.9


def test_documents_that_rules_are_induced_on_are_not_scored(text):
    even = np.arange(N) // LENGTH % 2 == 0
    acts = np.where(even, planted(text, RULES[0]), planted(text, RULES[1]))
    [label] = labels(text, [acts])
    assert label.rule == "on «the»" and label.claimed and label.score < 0.6, "it is honest about other documents"


def test_another_features_rule_is_the_control(text):
    made = labels(text, [planted(text, RULES[i], noise=0.002, seed=i) for i in range(6)])
    scores = claims(made)
    assert scores["n_claimed"] == 6 and scores["auroc"] > 0.95
    assert scores["median_claimed"] > 0.8 > 0.65 > scores["median_shuffled"]


def test_too_few_strong_activations_have_no_rule(text):
    acts = np.zeros(N)
    acts[33 : 33 + 64 * (FEWEST - 1) : 64] = 1.0
    [label, silent] = labels(text, [acts, np.zeros(N)])
    assert label == silent == Label(None, False, None, None, None, None, 0)
    assert claims([label, silent]) == {
        "n": 2, "n_claimed": 0, "share_claimed": 0.0, "median_score": None, "median_claimed": None,
        "median_shuffled": None, "auroc": None,
    }  # fmt: skip
    assert claims([])["share_claimed"] is None


def test_labels_do_not_depend_on_other_features(text):
    two = [planted(text, RULES[i], noise=0.01, seed=i) for i in (0, 3)]
    together, alone = labels(text, two), labels(text, two[:1])
    assert together[0].rule == alone[0].rule and together[0].score == alone[0].score
    assert alone[0].shuffled is None and together[0].shuffled is not None


def test_conditions_look_back_within_their_document_only(text):
    first = np.arange(0, N, LENGTH)
    for condition in (Words(1, tuple(text.words)), OfClass(1, "punctuation"), Before(tuple(text.words))):
        assert not condition.holds(text, first).any()
    assert Words(0, tuple(text.words)).holds(text, first).all()
    assert Start(2).holds(text, np.arange(5)).tolist() == [True, True, True, False, False]


def test_balanced_accuracy_is_the_auroc_of_a_yes_or_no():
    positive, negative = np.array([True] * 3 + [False]), np.array([True, False])
    pairs = [(a > b) + 0.5 * (a == b) for a in positive.tolist() for b in negative.tolist()]
    assert balanced_accuracy(positive, negative) == pytest.approx(np.mean(pairs))


def test_a_rule_names_few_words(text):
    many = Rule((Words(0, tuple(f"w{i}" for i in range(20))),))
    places = rows()
    holds = many.holds(text, places)
    found = induced(text, places[holds], places[~holds])
    assert all(len(getattr(c, "words", ())) <= MAX_WORDS for c in found.conditions)


def test_nothing_is_induced_where_nothing_recurs():
    once = Text(np.arange(64).reshape(2, 32), {i: f" u{i}x" for i in range(64)})
    assert induced(once, np.arange(2, 30, 2), np.arange(34, 62, 2)) is None
