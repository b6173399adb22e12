"""Tokenizers of a few words, for texts of which they know all, some or none."""

from __future__ import annotations

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

UNK = "<unk>"


def word_tokenizer(*words: str, bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of single letters and of ``words``; everything else is ``<unk>``, which is token 1."""
    known = dict.fromkeys(["<s>", UNK, *"abcdefghijklmnopqrstuvwxyz", *words])
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token=UNK)
