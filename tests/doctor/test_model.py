"""`doctor MODEL`: what works and what does not, and the residual of every identity."""

from __future__ import annotations

import json

import pytest

from mechstudy.doctor.model import human_count
from mechstudy.models.validate import identities
from tests.support.tiny import save_tiny, tiny_model
from tests.support.toy_model import mechstudy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-mixtral"
    save_tiny(folder, "mixtral")
    return folder


@pytest.mark.slow
def test_every_identity_is_shown_in_each_precision(folder):
    checks = {c["name"]: c for c in json.loads(mechstudy("doctor", folder, "--json").output)}
    names = identities(tiny_model("mixtral", dtype="float32"))
    assert {f"{name} {dtype}" for name in names for dtype in ("float32", "bfloat16")} <= set(checks)
    assert all(check["status"] == "ok" for check in checks.values())
    assert "idle per token" in checks["family"]["found"] and "tiny-mixtral" in checks["files"]["found"]


def test_quick_loads_nothing(folder):
    output = mechstudy("doctor", f"path:{folder}", "--quick").output
    assert "family" in output and "float32" not in output


def test_a_model_that_cannot_be_used_ends_with_2_and_a_fix(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((folder / "config.json").read_text())
    assert "holds no safetensors weights" in mechstudy("doctor", broken, code=2).output
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "mamba"}
    (broken / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "tokenizer.json"):
        (broken / name).write_bytes((folder / name).read_bytes())
    assert "'mamba' are not supported" in mechstudy("doctor", broken, code=2).output


def test_numbers_of_parameters_are_short():
    assert [human_count(n) for n in (950, 134_515_008, 1_240_000_000)] == ["950", "134.5M", "1.2B"]
