"""Scores of a dictionary on rows, and its effect inside a model."""

from dataclasses import replace

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from mechstudy.dictionaries.evaluate import HISTOGRAM_EDGES, evaluate, language_model_effect
from mechstudy.models.sites import Site
from tests.tiny import tiny_model

LAYER, D = 1, 32


def exact_sae(d: int, site: str, **metadata) -> Dictionary:
    """Feature pairs (+e_i, -e_i): reconstructs every row exactly."""
    eye = torch.eye(d, dtype=torch.float64)
    both = torch.cat([eye, -eye])
    meta = DictionaryMeta("sae", "jumprelu", d, d, 2 * d, None, site, site, metadata)
    zeros = torch.zeros(2 * d, dtype=torch.float64)
    return Dictionary(meta, W_enc=both.T, b_enc=zeros, W_dec=both, b_dec=zeros[:d], threshold=zeros)


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
def test_empty_dictionary_does_what_zeros_do_and_the_loss_is_the_models_own(family):
    model = tiny_model(family, n_layers=3, d=D)
    effect = language_model_effect(model, empty(exact_sae(D, f"mlp_out.{LAYER}")), token_rows(), batch_tokens=12)
    assert effect["ce_dictionary"] == effect["ce_zero"]
    assert effect["ce_loss_recovered"] == pytest.approx(0.0)
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


def test_rows_of_one_token_are_an_error():
    with pytest.raises(MechstudyError, match="longer than one token"):
        language_model_effect(tiny_model("llama"), exact_sae(D, "mlp_out.1"), [[3], [4]])
