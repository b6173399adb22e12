"""What tests of the command line share: a model that is nothing but a config, and a command run in this process."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models
from typer.testing import CliRunner

from mechstudy.cli.app import app

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 260,
}


def write_model(folder: Path) -> None:
    """A config, an empty weights file and a tokenizer of three words: enough for what loads no weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    words.save(str(folder / "tokenizer.json"))


def mechstudy(*arguments: object, code: int = 0):
    """Runs a command in this process and checks its exit status."""
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result
