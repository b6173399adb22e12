"""Exact identities of graphs and interventions that compare several right with several wrong answers (float64)."""

import math

import pytest
import torch

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.behaviours.scoring import score_pairs
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.frozen import FrozenForward
from mechstudy.circuits.linearised import linearise
from mechstudy.circuits.targets import AnswerContrast
from mechstudy.interventions.ablation import ablate
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.edges import LOGIT, EdgeCheck, EdgeInstance, measure_edges
from mechstudy.interventions.engine import SetFeature, clean_run, edited_run
from mechstudy.interventions.features import FeatureAt
from mechstudy.interventions.results import read_csv
from tests.support.interventions_world import mlp_gradients, pair, pairs, slope, transcoders, with_sets
from tests.support.tiny import ALL, tiny_model

TOKENS = torch.tensor([5, 17, 200, 33, 9, 120, 64])
RIGHT, WRONG = (7, 150, 31, 88), (99, 4)
CONFIG = AttributionConfig(max_features=10_000)
KINDS = ("logsumexp", "mean")


def graph_of(model, dicts, contrast):
    return attribute(model, dicts, TOKENS, CONFIG, explained=AnswerContrast(contrast))


def combined(logits, tokens, combine):
    """A side's number, worked out one logit at a time."""
    values = [float(logits[t]) for t in tokens]
    if combine == "mean":
        return sum(values) / len(values)
    return math.log(sum(math.exp(v - max(values)) for v in values)) + max(values)


def uncapped_logits(model):
    """Targets are read before Gemma 2's soft cap."""
    logits, cap = model.forward(TOKENS[None]).logits[0], model.final_softcap
    return logits if cap is None else torch.atanh(logits / cap) * cap


@pytest.mark.parametrize("combine", KINDS)
@pytest.mark.parametrize("family", ALL)
def test_the_ledger_closes_on_the_contrast_of_the_sets(family, combine):
    model = tiny_model(family)
    graph = graph_of(model, transcoders(model, skip=True), Contrast(RIGHT, WRONG, combine))
    logits = uncapped_logits(model)
    expected = combined(logits, RIGHT, combine) - combined(logits, WRONG, combine)
    rounding = 1e-6 if family == "gemma2" else 1e-8  # of its norms, which run in float32
    assert graph.ledger(0).target == pytest.approx(expected, abs=rounding)
    assert graph.ledger(0).total == pytest.approx(graph.ledger(0).target, abs=1e-8)


@pytest.mark.parametrize("combine", KINDS)
@pytest.mark.parametrize("family", ALL)
def test_doubling_a_feature_moves_the_frozen_contrast_by_its_edge(family, combine):
    model = tiny_model(family)
    dicts = transcoders(model)
    graph = graph_of(model, dicts, Contrast(RIGHT, WRONG, combine))
    features = linearise(model, dicts, TOKENS).layers[0].nodes
    frozen = FrozenForward(model, linearise(model, dicts, TOKENS))
    clean = model.linear_logits(frozen.run([]).final_BTD[:, -1])[0]
    for column in (0, 4, 9):
        delta = (0, int(features.position_M[column]), features.written_MD[0][column, None])
        moved = model.linear_logits(frozen.run([delta]).final_BTD[:, -1])[0] - clean
        change = 0.0
        for sign, side in ((1, RIGHT), (-1, WRONG)):
            weights = [1 / len(side)] * len(side)
            if combine == "logsumexp":
                weights = [math.exp(float(clean[t]) - combined(clean, side, combine)) for t in side]
            change += sign * sum(w * float(moved[t]) for w, t in zip(weights, side, strict=True))
        assert change == pytest.approx(float(graph.A_RS[0, column]), abs=1e-8) and abs(change) > 1e-6


@pytest.mark.parametrize("combine", KINDS)
def test_sets_of_one_are_the_logit_difference_to_the_bit(combine):
    model = tiny_model("granite")  # has a logit scale
    dicts = transcoders(model)
    alone = attribute(model, dicts, TOKENS, CONFIG, answer=7, wrong_answer=99)
    graph = graph_of(model, dicts, Contrast((7,), (99,), combine))
    assert torch.equal(graph.A_RS, alone.A_RS) and torch.equal(graph.value_R, alone.value_R)
    assert graph.logits == alone.logits
    logits = torch.randn(5, 260, generator=torch.Generator().manual_seed(0))
    difference = logits[:, 7].double() - logits[:, 99].double()
    assert torch.equal(contrasts(logits, [Contrast((7,), (99,), combine)] * 5), difference)


def test_contrasts_of_one_batch_equal_each_alone():
    logits = 5 * torch.randn(4, 260, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of_row = [
        Contrast(RIGHT, WRONG),
        Contrast((7,), (99,)),
        Contrast(WRONG, RIGHT, "mean"),
        Contrast((3,), (1, 2)),
    ]
    expected = [
        combined(row, c.right, c.combine) - combined(row, c.wrong, c.combine)
        for row, c in zip(logits, of_row, strict=True)
    ]
    assert contrasts(logits, of_row).tolist() == pytest.approx(expected, abs=1e-12)


def test_log_sum_exp_is_the_log_odds_of_any_right_answer():
    logits = torch.randn(260, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = logits.softmax(0)
    odds = math.log(sum(float(p[t]) for t in RIGHT) / sum(float(p[t]) for t in WRONG))
    assert float(Contrast(RIGHT, WRONG).value(logits)) == pytest.approx(odds, abs=1e-12)


def test_answers_that_begin_alike_count_once():
    assert Contrast.of_answers([(7, 1), (7, 2), (8,)], [(9,)]).right == (7, 8)


@pytest.mark.parametrize("combine", KINDS)
def test_live_gradients_are_those_of_the_sets(combine):
    model, contrast = tiny_model("qwen2"), Contrast(RIGHT, WRONG, combine)
    gradient = mlp_gradients(model, TOKENS, AnswerContrast(contrast), [1])[1]
    vector = torch.linspace(-1, 1, model.d_model, dtype=torch.float64)

    def value(edits):
        logits = model.forward(TOKENS[None], edits=edits).logits[0]
        return combined(logits, RIGHT, combine) - combined(logits, WRONG, combine)

    assert float(gradient[6] @ vector) == pytest.approx(slope(value, vector, 1, 6), rel=1e-6)


@pytest.mark.parametrize("combine", KINDS)
def test_frozen_edges_agree_and_live_ones_are_those_of_the_contrast(combine, tmp_path):
    model, prompt = tiny_model("gemma3"), with_sets(pair(1), combine)
    dicts = transcoders(model)
    contrast = Contrast.of_pair(prompt)
    tokens = torch.tensor(prompt.clean_tokens)
    graph = attribute(model, dicts, tokens, CONFIG, explained=AnswerContrast(contrast))
    columns = graph.A_RS[0, : graph.index.n_features].abs().topk(3).indices.tolist()
    checks, live = [], []
    clean = clean_run(model, tokens[None], (0,))
    for column in columns:
        layer, at, f = (int(x[column]) for x in (graph.feature_layer_S, graph.feature_position_S, graph.feature_id_S))
        instance = EdgeInstance(prompt, float(graph.A_RS[0, column]), (at,), (6,))
        checks.append(EdgeCheck(FeatureAt(layer, f, "here"), LOGIT, (instance,)))
        edited = edited_run(model, dicts, clean, [[SetFeature(layer, f, at, 0.0)]]).logits[0]
        live.append(
            sum(
                sign * (combined(clean.logits_BV[0], side, combine) - combined(edited, side, combine))
                for sign, side in ((1, contrast.right), (-1, contrast.wrong))
            )
        )
    rows = read_csv(measure_edges(model, dicts, checks, InterventionConfig(n_edges=3), tmp_path))
    for row, expected in zip(rows, live, strict=True):
        assert float(row["frozen"]) == pytest.approx(float(row["predicted"]), abs=1e-8)
        assert float(row["total_live"]) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("combine", KINDS)
def test_an_ablation_moves_the_contrast_of_every_prompt_whatever_the_batch(combine):
    model = tiny_model("qwen2")
    dicts = transcoders(model)
    some = [with_sets(p, combine) if i % 2 else p for i, p in enumerate(pairs(4))]
    together, alone = (
        ablate(model, dicts, some, ["0/3@subject", "2/5@last"], to="zero", n_controls=0, n_resamples=100,
               n_permutations=99, batch_tokens=size)
        for size in (4096, 1)
    )  # fmt: skip
    for prompt, effect, other in zip(some, together.prompts, alone.prompts, strict=True):
        c = Contrast.of_pair(prompt)
        edits = [SetFeature(0, 3, 2, 0.0), SetFeature(2, 5, len(prompt.clean_tokens) - 1, 0.0)]
        clean = clean_run(model, torch.tensor([prompt.clean_tokens]), (0,))
        edited = edited_run(model, dicts, clean, [edits]).logits[0]
        values = [
            combined(logits, c.right, c.combine) - combined(logits, c.wrong, c.combine)
            for logits in (clean.logits_BV[0], edited)
        ]
        assert (effect.clean, effect.ablated) == pytest.approx(tuple(values), abs=1e-9)
        assert effect.effect == pytest.approx(other.effect, abs=1e-9)


def test_scores_of_sets_are_those_of_any_of_their_answers():
    model, prompt = tiny_model("qwen2"), with_sets(pair(0), "logsumexp")
    several = ((7, 3), (8,), (7, 3, 5))  # the last continues the first: its probability is part of the first's
    wrong = ((9,), (11, 2))
    sets = prompt.answer_sets.model_copy(update={"right_tokens": several, "wrong_tokens": wrong})
    update = {"answer_tokens": several[0], "wrong_tokens": wrong[0], "answer_sets": sets}
    prompt = prompt.model_copy(update=update)

    def probability(answer):
        total, tokens = 1.0, list(prompt.clean_tokens)
        for token in answer:
            total *= float(model.forward(torch.tensor([tokens])).logits[0].softmax(0)[token])
            tokens.append(token)
        return total

    [score] = score_pairs(model, [prompt])
    assert math.exp(score.logprob_answer) == pytest.approx(probability((7, 3)) + probability((8,)), rel=1e-9)
    assert math.exp(score.logprob_wrong) == pytest.approx(probability((9,)) + probability((11, 2)), rel=1e-9)
    logits = model.forward(torch.tensor([prompt.clean_tokens])).logits[0]
    expected = combined(logits, (7, 8), "logsumexp") - combined(logits, (9, 11), "logsumexp")
    assert score.logit_difference == pytest.approx(expected, abs=1e-9)
    assert score.rank_answer == 1 + int((logits > max(logits[7], logits[8])).sum())
    assert score.prob_answer == pytest.approx(float(logits.softmax(0)[[7, 8]].sum()), rel=1e-9)
