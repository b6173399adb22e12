"""The evaluation record of a trained dictionary."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.evaluation.model_effect import language_model_effect
from mechstudy.dictionaries.evaluation.reconstruction import evaluate
from mechstudy.dictionaries.evaluation.record import evaluation_record
from mechstudy.dictionaries.training.rows import FirstBatches
from mechstudy.dictionaries.training.trainer import train
from tests.support.tiny import tiny_model

RECIPE = TrainConfig(steps=3, batch_size=16, tensorboard=False, precision="float32")


def rows() -> torch.Tensor:
    return torch.randn(64, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("k", "noted"), [(4, []), (20, ["held_out_l0"])])
def test_record_holds_config_and_scores(k, noted):
    architecture = DictionaryConfig(kind="sae", activation="topk", d_sae=40, k=4)
    dictionary, model = train(architecture, RECIPE, rows(), site_in="mlp_out.1"), tiny_model("llama", dtype="float32")
    dictionary.metadata["health"] = [{"what": "mean"}]
    asked = architecture.model_copy(update={"k": k})
    tokens = torch.randint(1, 250, (5, 8), generator=torch.Generator().manual_seed(1)).int()
    record = evaluation_record(
        dictionary, asked, RECIPE, rows(), model, tokens, layer=1, rows_read={"mixing": 0.9}, n_tokens=23
    )
    scores = evaluate(dictionary, rows())
    scores["n_eval_rows"] = scores.pop("n_rows")
    about = {
        "layer": 1, "kind": "sae", "activation": "topk", "site_in": "mlp_out.1", "site_out": "mlp_out.1", "d_in": 32,
        "d_out": 32, "d_sae": 40, "k": k, "steps": 3, "train_rows": 48, "health": record["health"], "mixing": 0.9,
    }  # fmt: skip
    assert [finding["what"] for finding in record["health"]] == ["mean", *noted]
    assert record == about | scores | language_model_effect(model, dictionary, tokens[:2])
    assert list(record) == list(about | scores | language_model_effect(model, dictionary, tokens[:2]))


def test_first_batches_are_the_same_in_every_pass():
    batches = FirstBatches(lambda: ((torch.tensor([n]), torch.tensor([n])) for n in count()), 3)
    assert [int(x) for x, _ in batches] == [int(x) for x, _ in batches] == [0, 1, 2]
