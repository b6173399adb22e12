"""Baseline scores against the model's own log-probabilities, worked out one token at a time."""

import pytest
import torch

from mechstudy.behaviours.schema import PromptPair
from mechstudy.behaviours.scoring import score_pairs
from tests.support.tiny import tiny_model


def pair(prompt, answer, wrong, id="p0"):
    return PromptPair(
        id=id, template="t", group="g", clean="", corrupted="", answer="", wrong_answer="", positions={},
        clean_tokens=prompt, corrupted_tokens=prompt, answer_tokens=answer, wrong_tokens=wrong,
    )  # fmt: skip


def by_hand(model, prompt, answer):
    total, tokens = 0.0, list(prompt)
    for token in answer:
        logits = model.forward(torch.tensor([tokens])).logits[0]
        total += float(torch.log_softmax(logits, -1)[token])
        tokens.append(token)
    return total


@pytest.mark.parametrize("answers", [((7,), (9,)), ((7, 3, 4), (9,)), ((7, 3), (9, 1)), ((7,), (9, 1, 2))])
def test_answers_of_any_length_are_scored_by_teacher_forcing(answers):
    model = tiny_model("qwen2")
    prompt = (5, 17, 200, 33)
    [score] = score_pairs(model, [pair(prompt, *answers)])
    assert score.logprob_answer == pytest.approx(by_hand(model, prompt, answers[0]), abs=1e-9)
    assert score.logprob_wrong == pytest.approx(by_hand(model, prompt, answers[1]), abs=1e-9)
    assert score.correct == (score.logprob_answer > score.logprob_wrong)
    logits = model.forward(torch.tensor([prompt])).logits[0]
    assert score.logit_difference == pytest.approx(float(logits[7] - logits[9]), abs=1e-9)
    assert score.rank_answer == 1 + int((logits > logits[7]).sum())


def test_mixed_lengths_in_one_call_equal_single_calls():
    model = tiny_model()
    pairs = [pair(tuple(range(3, 3 + n)), (7, 8)[: 1 + n % 2], (9,), f"p{n}") for n in (2, 5, 3, 5, 2)]
    together = score_pairs(model, pairs)
    alone = [score_pairs(model, [p])[0] for p in pairs]
    for a, b in zip(together, alone, strict=True):
        assert a.id == b.id and a.logprob_answer == pytest.approx(b.logprob_answer, abs=1e-9)
