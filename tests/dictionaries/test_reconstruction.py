"""Scores of a dictionary on rows, and its effect inside a model."""

from dataclasses import replace

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from mechstudy.dictionaries.evaluation.model_effect import language_model_effect
from mechstudy.dictionaries.evaluation.reconstruction import HISTOGRAM_EDGES, distribution, evaluate
from mechstudy.models.sites import Site
from tests.support.dictionary_worlds import exact_sae
from tests.support.tiny import tiny_model

LAYER, D = 1, 32


def empty(dictionary: Dictionary, **changes) -> Dictionary:
    """The same with nothing in it: reconstructs zero."""
    tensors = {name: torch.zeros_like(tensor) for name, tensor in dictionary.named_parameters()}
    return Dictionary(replace(dictionary.cfg, **changes), **tensors)


def test_scores_that_can_be_counted_by_hand():
    eye = torch.eye(3, dtype=torch.float64)
    meta = DictionaryMeta("sae", "jumprelu", 3, 3, 4, None, "mlp_out.0", "mlp_out.0", {"max_input_norm": 50.0})
    dictionary = Dictionary(
        meta,
        W_enc=torch.cat([eye, torch.zeros(3, 1, dtype=torch.float64)], 1),
        b_enc=torch.zeros(4, dtype=torch.float64),
        W_dec=torch.cat([eye, torch.zeros(1, 3, dtype=torch.float64)]),
        b_dec=torch.zeros(3, dtype=torch.float64),
        threshold=torch.zeros(4, dtype=torch.float64),
    )
    x = torch.zeros(100, 3, dtype=torch.float64)
    x[:, 0] = 1.0  # active everywhere: dense
    x[:10, 1] = 2.0  # active in a tenth, which is not more than a tenth
    x[0, 2] = -3.0  # negative: not reconstructed
    sink = torch.full((1, 3), 99.0, dtype=torch.float64)
    scores = evaluate(dictionary, [(x[:60], x[:60]), (torch.cat([x[60:], sink]),) * 2])
    variance = 100 * (0.1 * 4 - 0.2**2) + 100 * (0.01 * 9 - 0.03**2)
    assert scores["fvu"] == pytest.approx(9 / variance)
    assert scores["r2"] == 1 - scores["fvu"]
    assert scores["l0"] == pytest.approx(1.1)
    assert scores["dead_share"] == 0.5 and scores["dense_share"] == 0.25
    assert scores["n_rows"] == 100 and scores["sink_rows_share"] == pytest.approx(1 / 101)
    histogram = scores["density_histogram"]
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1 == len(HISTOGRAM_EDGES)
    assert sum(histogram["counts"]) == 2 and histogram["counts"][-1] == 1
    assert histogram["counts"][histogram["edges"].index(-1.0)] == 1


AXES = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]], dtype=torch.float64)


def changed(dictionary: Dictionary, **tensors: torch.Tensor) -> Dictionary:
    return Dictionary(dictionary.cfg, **{**dict(dictionary.named_parameters()), **tensors})


def test_a_reconstruction_of_half_length_has_bias_and_shrinkage_one_half():
    exact = exact_sae(2, "mlp_out.0")
    offset = torch.tensor([3.0, 4.0], dtype=torch.float64)
    half = changed(exact, W_dec=exact.W_dec / 2, b_dec=offset, b_enc=-offset @ exact.W_enc)
    at_mean = torch.zeros(1, 2, dtype=torch.float64)
    rows = torch.cat([AXES, at_mean]) + offset
    scores = evaluate(half, [(rows, rows)])
    assert scores["fvu"] == pytest.approx(0.25)
    for name, value in {"fvu_per_row": 0.25, "shrinkage": 0.5, "cosine_centred": 1.0}.items():
        found = scores[name]  # the row at the mean has no length to compare with
        assert [found["mean"], *found["quantiles"].values()] == pytest.approx([value] * 6), name
    assert scores["reconstruction_bias"] == pytest.approx(0.5)
    assert scores["l0"] == scores["l0_per_row"]["mean"] == pytest.approx(0.8)
    assert scores["l0_per_row"]["quantiles"]["0.05"] == pytest.approx(0.2), "a fifth of the way from 0 to 1"
    two = evaluate(half, [(rows[:2], rows[:2])])["cosine"]  # (5, 4) is reconstructed as (4, 4), (1, 4) as (2, 4)
    assert two["mean"] == pytest.approx((36 / (41 * 32) ** 0.5 + 18 / (17 * 20) ** 0.5) / 2)


def test_missing_features_shrink_rows_but_are_no_bias():
    exact = exact_sae(2, "mlp_out.0")
    one_axis = changed(exact, W_dec=exact.W_dec * torch.tensor([1.0, 0.0], dtype=torch.float64))
    scores = evaluate(one_axis, [(AXES, AXES)])
    assert scores["fvu"] == pytest.approx(2 / 10), "long rows decide the pooled one"
    assert scores["fvu_per_row"]["mean"] == pytest.approx(0.5)
    assert scores["fvu_per_row"]["quantiles"]["0.95"] == pytest.approx(1.0)
    assert scores["shrinkage"]["mean"] == pytest.approx(0.5) and scores["reconstruction_bias"] == pytest.approx(1.0)
    assert scores["cosine"]["mean"] == scores["cosine_centred"]["mean"] == pytest.approx(1.0), "where both have lengths"


def test_a_dictionary_that_says_nothing_has_no_bias_and_no_cosine():
    scores = evaluate(empty(exact_sae(2, "mlp_out.0")), [(AXES, AXES)])
    assert scores["fvu"] == pytest.approx(1.0) and scores["shrinkage"]["mean"] == 0 and scores["dead_share"] == 1
    assert scores["reconstruction_bias"] is scores["cosine"] is scores["cosine_centred"] is None


def test_quantiles_are_interpolated_between_rows():
    found = distribution(torch.arange(101).flip(0))
    assert found == {"mean": 50.0, "quantiles": {"0.05": 5.0, "0.25": 25.0, "0.5": 50.0, "0.75": 75.0, "0.95": 95.0}}
    assert distribution(torch.tensor([1.0, 2.0]))["quantiles"]["0.25"] == 1.25
    assert distribution(torch.zeros(0)) is None


def test_batches_of_an_iterator_of_a_list_and_in_other_sizes_score_alike():
    dictionary = exact_sae(3, "mlp_out.0", max_input_norm=3.0)
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = evaluate(dictionary, [(rows, rows)])
    parts = [(part, part) for part in rows.split(7)]
    assert evaluate(dictionary, parts) == evaluate(dictionary, iter(parts))
    assert evaluate(dictionary, parts)["cosine_centred"]["mean"] == pytest.approx(whole["cosine_centred"]["mean"])
    assert whole["sink_rows_share"] > 0


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (torch.zeros(0, 2), "no rows to evaluate on"),
        (torch.full((4, 2), 99.0), "no rows to evaluate on"),
        (torch.full((7, 2), 0.1), "every row is equal"),
        (torch.zeros(4, 2), "every row is zero"),
    ],
)
def test_rows_without_variance_are_refused(rows, what):
    rows = rows.double()
    with pytest.raises(MechstudyError, match=what):
        evaluate(exact_sae(2, "mlp_out.0", max_input_norm=50.0), [(rows, rows)])


def test_rows_that_are_not_finite_are_named_or_left_out_and_counted():
    dictionary, bad = exact_sae(2, "mlp_out.0", max_input_norm=50.0), AXES.clone()
    bad[2, 1] = torch.nan
    with pytest.raises(MechstudyError, match="the target rows to evaluate on hold NaN") as error:
        evaluate(dictionary, [(AXES, AXES), (AXES, bad)])
    assert error.value.where == "mlp_out.0: batch 1, row 2" and error.value.facts["rows affected"].startswith("1 of 4")
    scores = evaluate(dictionary, [(AXES, AXES), (AXES, bad)], non_finite="skip")
    assert scores["n_rows"] == 7 and scores["not_finite_rows"] == 1 and scores["sink_rows_share"] == 0
    assert evaluate(dictionary, [(AXES, AXES)])["not_finite_rows"] == 0


def token_rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 257, (n,), generator=generator).tolist() for n in (9, 6, 9, 4, 1)]


def test_exact_reconstruction_recovers_the_whole_loss():
    model = tiny_model("llama", n_layers=3, d=D)
    effect = language_model_effect(model, exact_sae(D, f"mlp_out.{LAYER}"), token_rows())
    assert effect["ce_dictionary"] == pytest.approx(effect["ce_model"], abs=1e-6)
    assert effect["ce_loss_recovered"] == pytest.approx(1.0, abs=1e-4)
    assert effect["kl"] == pytest.approx(0.0, abs=1e-6)
    assert effect["n_tokens"] == 8 + 5 + 8 + 3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_empty_dictionary_equals_zeros_and_ce_model_is_the_models_loss(family):
    model = tiny_model(family, n_layers=3, d=D)
    effect = language_model_effect(model, empty(exact_sae(D, f"mlp_out.{LAYER}")), token_rows(), batch_tokens=12)
    assert effect["ce_dictionary"] == effect["ce_zero"]
    if effect["ce_zero"] > effect["ce_model"]:
        assert effect["ce_loss_recovered"] == 0.0 and "ce_loss_recovered_undefined" not in effect
    else:  # a random model may lose by its MLP
        assert effect["ce_loss_recovered"] is None
        assert effect["ce_loss_recovered_undefined"] == "zeros at the site lower the loss"
    assert effect["kl"] > 1e-6

    def zero_but_first(y: torch.Tensor) -> torch.Tensor:
        return torch.cat([y[:, :1], torch.zeros_like(y[:, 1:])], dim=1)

    own, zero, n = 0.0, 0.0, 0
    for row in token_rows()[:-1]:
        tokens = torch.tensor([row])
        for edits in (None, {Site("mlp_out", LAYER): zero_but_first}):
            logits = model.forward(tokens, logits_at="all", edits=edits).logits[0, :-1].float()
            loss = float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
            own, zero = (own + loss, zero) if edits is None else (own, zero + loss)
        n += len(row) - 1
    assert effect["ce_model"] == pytest.approx(own / n, rel=1e-5)
    assert effect["ce_zero"] == pytest.approx(zero / n, rel=1e-5)


def test_transcoder_reads_its_input_in_the_same_forward():
    model = tiny_model("llama", n_layers=3, d=D)
    source, target = Site("mlp_in", LAYER), Site("mlp_out", LAYER)
    meta = DictionaryMeta("skip_transcoder", "jumprelu", D, D, 2, None, str(source), str(target))
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    zeros = torch.zeros(2, D, dtype=torch.float64)
    dictionary = Dictionary(
        meta,
        W_enc=zeros.T.clone(),
        b_enc=zeros[:, 0].clone(),
        W_dec=zeros,
        b_dec=zeros[0].clone(),
        W_skip=matrix,
        threshold=torch.ones(2, dtype=torch.float64),
    )
    tokens = torch.tensor([token_rows()[0]])
    x = model.forward(tokens, capture=[source], logits_at=None).activations[source]

    def linear(y: torch.Tensor) -> torch.Tensor:
        return torch.cat([y[:, :1], (x @ matrix.T)[:, 1:]], dim=1)

    logits = model.forward(tokens, logits_at="all", edits={target: linear}).logits[0, :-1].float()
    expected = float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:]))
    effect = language_model_effect(model, dictionary, tokens)
    assert effect["ce_dictionary"] == pytest.approx(expected, rel=1e-5)


def test_sinks_keep_the_models_own_activation():
    model = tiny_model("llama", n_layers=3, d=D)
    nothing = empty(exact_sae(D, f"mlp_out.{LAYER}", max_input_norm=0.0))
    nothing.cfg.metadata["max_input_norm"] = 0.0  # every row is a sink
    effect = language_model_effect(model, nothing, token_rows())
    assert effect["ce_zero"] == effect["ce_dictionary"] == pytest.approx(effect["ce_model"], abs=1e-9)
    assert effect["ce_loss_recovered"] is None
    assert effect["ce_loss_recovered_undefined"] == "zeros at the site do not change the loss"


def test_rows_of_one_token_are_an_error():
    with pytest.raises(MechstudyError, match="longer than one token"):
        language_model_effect(tiny_model("llama"), exact_sae(D, "mlp_out.1"), [[3], [4]])
