"""Hand-written circuits: that they are what the models compute with."""

import pytest
import torch

from mechstudy.behaviours.scoring import score_pairs
from mechstudy.referee import programs
from mechstudy.referee.suite import COMPILED

ALL = [name for name in COMPILED if not name.startswith("boolean")]


@pytest.mark.parametrize("name", ALL)
def test_only_the_circuit_reaches_the_answers(name):
    circuit = COMPILED[name](0)
    check = circuit.check(circuit.test[:4])
    assert check.holds, check
    assert check.edge_inside is not None
    assert check.active > 0.3, "the rest of the model differs between clean and corrupted prompts"


@pytest.mark.parametrize("name", ALL)
def test_models_give_the_right_answers_on_unseen_prompts(name):
    circuit = COMPILED[name](1)
    assert not {p.clean_tokens for p in circuit.train} & {p.clean_tokens for p in circuit.test}
    for pairs in (circuit.train, circuit.test):
        swapped = [
            pair.model_copy(update={
                "clean_tokens": pair.corrupted_tokens, "answer_tokens": pair.wrong_tokens,
                "wrong_tokens": pair.answer_tokens,
            })
            for pair in pairs
        ]  # fmt: skip
        right = [score.logit_difference for score in score_pairs(circuit.model, pairs)]
        flipped = [score.logit_difference for score in score_pairs(circuit.model, swapped)]
        # A model may not prefer the wrong answer itself; what it prefers changes with the prompt.
        assert all(a + b > 1 for a, b in zip(right, flipped, strict=True)), (right, flipped)


def test_seeds_draw_other_weights_and_prompts():
    one, other, again = programs.ioi_one_layer(0), programs.ioi_one_layer(1), programs.ioi_one_layer(0)
    weights = [circuit.model.unembedding.weight for circuit in (one, other, again)]
    assert torch.equal(weights[0], weights[2]) and not torch.allclose(weights[0], weights[1])
    assert one.train == again.train and one.train != other.train
