"""Exact identities of graphs and interventions that compare all tokens of answers, teacher-forced (float64)."""

import pytest
import torch

from mechstudy.behaviours.contrast import WholeAnswers
from mechstudy.behaviours.schema import PromptPair
from mechstudy.behaviours.scoring import score_pairs
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.frozen import FrozenForward
from mechstudy.circuits.linearised import linearise
from mechstudy.circuits.prompt_graph import explain_prompt
from mechstudy.circuits.question import Question
from mechstudy.circuits.targets import AnswerTokens
from mechstudy.interventions.ablation import ablate
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.edges import LOGIT, EdgeCheck, EdgeInstance, measure_edges
from mechstudy.interventions.effects import LogitEffects
from mechstudy.interventions.engine import SetFeature, site_edits
from mechstudy.interventions.features import FeatureAt
from mechstudy.interventions.results import COLUMNS, SHARES, read_csv
from mechstudy.interventions.runner import Suite, run_samples
from mechstudy.interventions.samples import Variant
from tests.support.interventions_world import mlp_gradients, pair, slope, transcoders
from tests.support.tiny import ALL, tiny_model

CONFIG = AttributionConfig(max_features=10_000)
# Right and wrong answers that part at once, later, and after which the wrong one goes on.
ANSWERS = [((7, 31, 88), (99,)), ((7, 31, 88), (7, 4, 150)), ((7,), (99, 3)), ((7, 31, 31), (7, 31, 9))]


def whole(number: int, right: tuple[int, ...], wrong: tuple[int, ...], length: int = 7) -> PromptPair:
    update = {"answer_tokens": right, "wrong_tokens": wrong, "whole_answers": True}
    return PromptPair(**(pair(number, length).canonical() | update))


def logprobs(model, prompt, answer, edits=None):
    """Log-probabilities of an answer's tokens, worked out one token at a time."""
    values, tokens = [], list(prompt)
    for token in answer:
        logits = model.forward(torch.tensor([tokens]), edits=edits() if edits else None).logits[0]
        values.append(float(torch.log_softmax(logits, 0)[token]))
        tokens.append(token)
    return values


def stated(model, prompt, answers: WholeAnswers, edits=None):
    """What a graph explains: log p(right) - log p(wrong up to where it departs)."""
    right = logprobs(model, prompt, answers.right, edits)
    return sum(right) - sum(logprobs(model, prompt, answers.wrong[: answers.departure + 1], edits))


def graph_of(model, dicts, prompt):
    question = Question.of_pair(prompt)
    return attribute(model, dicts, torch.tensor(question.tokens), CONFIG, explained=question.explained)


@pytest.mark.parametrize("family", ALL)
def test_the_ledger_closes_on_the_stated_log_probability(family):
    model, prompt = tiny_model(family), whole(0, *ANSWERS[1])
    graph = graph_of(model, transcoders(model, skip=True), prompt)
    expected = stated(model, prompt.clean_tokens, WholeAnswers.of_pair(prompt))
    ledger = graph.target_ledger()
    rounding = 1e-6 if family == "gemma2" else 1e-8  # of its norms, which run in float32
    assert ledger.target == pytest.approx(expected, abs=rounding)
    assert ledger.total == pytest.approx(ledger.target, abs=1e-8)
    assert torch.allclose(graph.A_RS.sum(1), graph.value_R, rtol=0, atol=1e-8)


@pytest.mark.parametrize("answers", ANSWERS)
def test_each_token_has_its_share(answers):
    model, prompt = tiny_model("gemma2"), whole(0, *answers)  # has a soft cap
    graph = graph_of(model, transcoders(model), prompt)
    both = WholeAnswers.of_pair(prompt)
    right, wrong = (logprobs(model, prompt.clean_tokens, side) for side in answers)
    s = both.departure
    shares = [right[s] - wrong[s], *right[s + 1 :]]
    assert [graph.ledger(row).total for row in range(len(graph.logits))] == pytest.approx(shares, abs=1e-6)
    assert sum(shares) == pytest.approx(stated(model, prompt.clean_tokens, both), abs=1e-9)
    assert [node.position for node in graph.logits] == [6 + s + k for k in range(len(shares))]
    assert graph.summed == (len(shares) > 1)


@pytest.mark.parametrize("family", ALL)
def test_doubling_a_feature_moves_the_frozen_target_by_its_edges(family):
    model, prompt = tiny_model(family), whole(0, *ANSWERS[0])
    dicts, tokens = transcoders(model), torch.tensor([*prompt.clean_tokens, 7, 31])
    graph = graph_of(model, dicts, prompt)
    linear = linearise(model, dicts, tokens)
    frozen, features = FrozenForward(model, linear), linear.layers[0].nodes
    clean = frozen.run([]).final_BTD[0]
    for column in (0, 4, int((graph.feature_position_S[: len(features.value_M)] == 7).nonzero()[0])):
        delta = (0, int(features.position_M[column]), features.written_MD[0][column, None])
        moved = frozen.run([delta]).final_BTD[0] - clean
        for row, (position, token) in enumerate(((6, 7), (7, 31), (8, 88))):

            def share(normed, token=token, row=row):
                logits = model.unembed(normed)
                return logits[7] - logits[99] if row == 0 else torch.log_softmax(logits, 0)[token]

            # the derivative along the movement, numerically
            step = 1e-4 * moved[position]
            slope = float(share(clean[position] + step) - share(clean[position] - step)) / 2e-4
            assert slope == pytest.approx(float(graph.A_RS[row, column]), rel=1e-5, abs=1e-8)


def test_single_tokens_are_the_logit_difference():
    model, prompt = tiny_model("qwen2"), whole(0, (7,), (99,))
    dicts, tokens = transcoders(model), torch.tensor(prompt.clean_tokens)
    alone = attribute(model, dicts, tokens, CONFIG, answer=7, wrong_answer=99)
    graph = graph_of(model, dicts, prompt)
    assert torch.allclose(graph.A_RS, alone.A_RS, atol=1e-12)
    assert float(graph.value_R[0]) == pytest.approx(float(alone.value_R[0]), abs=1e-12)


@pytest.mark.parametrize("answers", ANSWERS)
def test_live_gradients_are_those_of_the_stated_log_probability(answers):
    model, prompt = tiny_model("qwen2"), whole(0, *answers)
    both = WholeAnswers.of_pair(prompt)
    question = Question.of_pair(prompt)
    gradient = mlp_gradients(model, torch.tensor(question.tokens), AnswerTokens(both), [1])[1]
    vector = torch.linspace(-1, 1, model.d_model, dtype=torch.float64)

    numeric = slope(lambda edits: stated(model, prompt.clean_tokens, both, lambda: edits), vector, 1, 5)
    assert float(gradient[5] @ vector) == pytest.approx(numeric, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("answers", ANSWERS)
def test_frozen_edges_agree_and_live_ones_are_those_of_the_model(answers, tmp_path):
    model, prompt = tiny_model("gemma3"), whole(1, *answers)
    dicts, both = transcoders(model), WholeAnswers.of_pair(prompt)
    graph = graph_of(model, dicts, prompt)
    n = len(graph.logits)
    on_prompt = torch.where(graph.feature_position_S < 7, graph.A_RS[:n, : graph.index.n_features].sum(0), 0.0)
    checks, live = [], []
    for column in on_prompt.abs().topk(3).indices.tolist():
        layer, at, f = (int(x[column]) for x in (graph.feature_layer_S, graph.feature_position_S, graph.feature_id_S))
        instance = EdgeInstance(prompt, float(on_prompt[column]), (at,), (6,))
        checks.append(EdgeCheck(FeatureAt(layer, f, "here"), LOGIT, (instance,)))

        def edits(layer=layer, f=f, at=at):
            return site_edits(dicts, [[SetFeature(layer, f, at, 0.0)]])

        live.append(stated(model, prompt.clean_tokens, both) - stated(model, prompt.clean_tokens, both, edits))
    rows = read_csv(measure_edges(model, dicts, checks, InterventionConfig(n_edges=3), tmp_path))
    for row, expected in zip(rows, live, strict=True):
        assert float(row["frozen"]) == pytest.approx(float(row["predicted"]), abs=1e-8)
        assert float(row["total_live"]) == pytest.approx(expected, abs=1e-8)


def some_pairs():
    mixed = [whole(i, *answers, length=7 + 2 * (i % 2)) for i, answers in enumerate((*ANSWERS, ((7,), (99,))))]
    return [*mixed, pair(9)]


@pytest.mark.parametrize("batch_tokens", [4096, 1])
def test_samples_equal_answers_forced_token_by_token(batch_tokens):
    model, some = tiny_model("qwen2"), some_pairs()
    dicts = transcoders(model)

    def edits_of(prompt):
        return [SetFeature(0, 3, 2, 0.0), SetFeature(2, 5, len(prompt.clean_tokens) - 1, 1.5)]

    variant = Variant("ablation", "circuit", "g", "effect", 0, lambda i: edits_of(some[i]))
    samples = run_samples(
        model, dicts, [Suite("s", tuple(some), (variant,))],
        lambda chunk: LogitEffects(model, chunk.pairs, shares=True), batch_tokens=batch_tokens,
    )  # fmt: skip
    rows = {row[7]: dict(zip(COLUMNS + SHARES, row, strict=True)) for row in samples}
    assert len(rows) == len(some)
    for prompt in some[:-1]:
        row = rows[prompt.id]
        edits = lambda p=prompt: site_edits(dicts, [edits_of(p)])  # noqa: E731
        clean, edited, corrupted = (
            [logprobs(model, tokens, answer, e) for answer in (prompt.answer_tokens, prompt.wrong_tokens)]
            for tokens, e in (
                (prompt.clean_tokens, None), (prompt.clean_tokens, edits), (prompt.corrupted_tokens, None),
            )
        )  # fmt: skip
        metrics = [sum(right) - sum(wrong) for right, wrong in (clean, corrupted, edited)]
        assert [row["clean"], row["corrupted"], row["metric"]] == pytest.approx(metrics, abs=1e-9)
        assert row["value"] == pytest.approx(metrics[2] - metrics[0], abs=1e-9)
        for side, name in enumerate(SHARES):
            moved = [after - before for after, before in zip(edited[side], clean[side], strict=True)]
            assert [float(x) for x in row[name].split()] == pytest.approx(moved, abs=1e-9)
    assert rows[some[-1].id]["tokens_answer"] == ""


def test_a_sham_changes_exactly_nothing():
    model, prompt = tiny_model("llama"), whole(0, *ANSWERS[1])
    dicts = transcoders(model)
    variant = Variant("sham", "sham", "g", "sham", 0, lambda _: [SetFeature(0, 3, 2, None)])
    suite = Suite("s", (prompt, whole(1, *ANSWERS[1])), (variant,))
    for row in run_samples(model, dicts, [suite], lambda c: LogitEffects(model, c.pairs, shares=True)):
        values = dict(zip(COLUMNS + SHARES, row, strict=True))
        assert values["value"] == 0.0 and set(values["tokens_answer"].split()) == {"0.0"}


def test_ablations_in_python_measure_whole_answers():
    model, prompt = tiny_model("qwen2"), whole(0, *ANSWERS[0])
    dicts = transcoders(model)
    found = ablate(model, dicts, [prompt], ["0/3@subject"], to="zero", n_controls=0, n_resamples=100, n_permutations=99)
    right, wrong = (sum(logprobs(model, prompt.clean_tokens, side)) for side in ANSWERS[0])
    assert found.prompts[0].clean == pytest.approx(right - wrong, abs=1e-9)


@pytest.mark.parametrize("answers", ANSWERS)
def test_scores_hold_every_tokens_share(answers):
    model, prompt = tiny_model("qwen2"), whole(0, *answers)
    [score] = score_pairs(model, [prompt])
    right, wrong = (logprobs(model, prompt.clean_tokens, side) for side in answers)
    assert score.token_logprobs_answer == pytest.approx(tuple(right), abs=1e-9)
    assert score.token_logprobs_wrong == pytest.approx(tuple(wrong), abs=1e-9)
    assert score.logit_difference == pytest.approx(sum(right) - sum(wrong), abs=1e-9)
    row = score.row()
    assert [float(x) for x in row["token_logprobs_wrong"].split()] == list(score.token_logprobs_wrong)
    [first] = score_pairs(model, [pair(0)])
    assert "token_logprobs_answer" not in first.row()


def test_a_behaviours_graph_keeps_answer_tokens_apart():
    model, prompt = tiny_model("qwen2"), whole(0, *ANSWERS[0])
    explained = explain_prompt(model, transcoders(model), prompt, "a", CONFIG)
    ours = explained.json["metadata"]["mechstudy"]
    assert [part["target"] for part in ours["ledgers"]] and len(ours["ledgers"]) == 3
    assert ours["ledger"]["total"] == pytest.approx(sum(part["total"] for part in ours["ledgers"]), abs=1e-9)
    assert ours["logit_difference"] == pytest.approx(ours["ledger"]["target"], abs=1e-9)
    positions = {node["position"] for node in explained.record["nodes"].values()}
    assert {"subject", "last", "answer tokens"} <= positions
    logits = [node for node in explained.json["nodes"] if node["feature_type"] == "logit"]
    assert [node["ctx_idx"] for node in logits] == [6, 7, 8]
    top = explain_prompt(model, transcoders(model), prompt, "a", CONFIG.model_copy(update={"target": "logits"}))
    assert len(top.json["metadata"]["prompt_tokens"]) == 7
