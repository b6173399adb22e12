"""Inputs with one mistake each, in the folder of a study that is otherwise right."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.toy_model import CONFIG

Arrange = Callable[[Path], None]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0\nsize 123456\n"


@dataclass(frozen=True)
class Case:
    """A mistake, the command that meets it, and the words that its message has to hold."""

    name: str
    arrange: Arrange
    command: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


def nothing(root: Path) -> None:
    """The mistake is in the command alone."""


def both(*steps: Arrange) -> Arrange:
    def arrange(root: Path) -> None:
        for step in steps:
            step(root)

    return arrange


def change(old: str, new: str) -> Arrange:
    """The study file with one part replaced."""

    def arrange(root: Path) -> None:
        text = (root / "study.yaml").read_text()
        assert old in text, old
        (root / "study.yaml").write_text(text.replace(old, new, 1))

    return arrange


def write(name: str, content: str | bytes) -> Arrange:
    def arrange(root: Path) -> None:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return arrange


def delete(name: str) -> Arrange:
    return lambda root: (root / name).unlink()


def rename(name: str, new: str) -> Arrange:
    return lambda root: os.rename(root / name, root / new)  # noqa: PTH104


def folder(name: str) -> Arrange:
    return lambda root: (root / name).mkdir(parents=True)


def link(name: str, target: str) -> Arrange:
    def arrange(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)

    return arrange


def config(**fields: object) -> Arrange:
    """The model's config with other fields."""
    return write("model/config.json", json.dumps({**CONFIG, **fields}))


def prompts(text: str, name: str = "own.jsonl") -> Arrange:
    """The study with a file of prompts in place of its behaviour."""
    named = f"{{name: own, file: {name}, n_train: 4, n_test: 4}}"
    return both(change("{name: country_capital, n_train: 4, n_test: 4}", named), write(name, text))


def lines(n: int = 4, **fields: object) -> str:
    """Prompt pairs whose keys have other values, or, where None, are missing."""
    row = {"clean": "a b", "corrupted": "a c", "answer": "b", "wrong_answer": "c"} | fields
    kept = {key: value for key, value in row.items() if value is not None}
    return "".join(json.dumps(kept | {"group": str(number)}) + "\n" for number in range(n))


def tokenizer_of_words(root: Path) -> None:
    """A tokenizer with a token for each word of a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(root / "model" / "tokenizer.json"))


def tokenizer_of_letters(root: Path) -> None:
    """A tokenizer that knows single letters, and no word."""
    from tests.support.word_tokenizer import word_tokenizer

    word_tokenizer().backend_tokenizer.save(str(root / "model" / "tokenizer.json"))


def two_layers(place: str) -> Arrange:
    """A transcoder that reads one layer and writes another."""

    def arrange(root: Path) -> None:
        from dataclasses import replace

        from tests.support.interventions_world import transcoder

        one = transcoder(32, 1).float()
        one.cfg = replace(one.cfg, site_out="mlp_out.2")
        one.save(root / place)

    return arrange


def tiny(root: Path) -> None:
    """A random model with byte tokens in the folder ``tiny``."""
    from tests.support.tiny import save_tiny

    save_tiny(root / "tiny")


def tiny_with_a_word(root: Path) -> None:
    """The same, with a token for `` cd``."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tiny(root)
    space = "\u0120"  # how byte tokenizers write it
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate([*letters, f"{space}c", f"{space}cd"])}
    words = Tokenizer(models.BPE(vocab=vocab, merges=[(space, "c"), (f"{space}c", "d")]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(root / "tiny")


def dictionary(place: str, d: int, layer: int = 1) -> Arrange:
    """A dictionary of coordinates in SAELens' format."""

    def arrange(root: Path) -> None:
        import torch

        from tests.support.dictionary_worlds import dictionary_of

        dictionary_of(torch.eye(d), site=f"mlp_out.{layer}").save(root / place)

    return arrange


def transcoders(place: str, d: int = 32, family: str = "llama", **config: object) -> Arrange:
    """A circuit-tracer set for every layer of the model, whose config.yaml has more fields, for a model of a family."""

    def arrange(root: Path) -> None:
        import yaml

        from mechstudy.dictionaries.formats.circuit_tracer import write_set
        from tests.support.interventions_world import transcoder

        write_set([transcoder(d, layer).float() for layer in range(6)], root / place, model_name="")
        file = root / place / "config.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | config))
        sizes = {**CONFIG, "model_type": family, "num_key_value_heads": 4, "head_dim": 8}
        (root / "model" / "config.json").write_text(json.dumps(sizes))

    return arrange


def archive_of(name: str, *members: str) -> Arrange:
    """A tar of files of the folder, which is none of mechstudy's."""

    def arrange(root: Path) -> None:
        with tarfile.open(root / name, "w:gz") as tar:
            for member in members:
                tar.add(root / member, member)

    return arrange
