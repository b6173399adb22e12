"""Questions about features for a model behind an endpoint, and what its answers say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mechstudy.features.endpoint import one_line

LONGEST = 80  # characters of a label
_MARKED = 0.3  # of the largest activation of a text, from which tokens are marked
_STRONGEST = 4  # tokens of a text whose activations are listed
_BEFORE, _AFTER = 24, 8  # tokens of a text kept around its peak
_PROMOTED = 8
_LIST = re.compile(r"\[[\s\d,]*\]")

_LABEL = """\
A feature of a language model is active on some tokens of a text. Below are texts on which it is active. Tokens on
which it is active stand between << and >>; after each text are the strongest, with activations from 1 to 10.

{texts}
{promoted}
What do the tokens on which it is active have in common? It may be the token itself, what stands before it, or the
subject. Answer with one short phrase of at most ten words, and nothing else."""

_DETECTION = """\
Somebody describes what a feature of a language model responds to as: {label}

Below are {n} numbered texts. In some of them a token fits this description, in the others none does.

{texts}

Which texts fit? Answer with a JSON list of their numbers, such as [1, 4], or [] if none fits, and nothing else."""


def text_of(example: Mapping[str, Any]) -> str:
    """An example's tokens around its peak, as a text."""
    tokens, peak = example["tokens"], int(example["peak"])
    return "".join(map(str, tokens[max(0, peak - _BEFORE) : peak + _AFTER + 1]))


def label_question(page: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> str:
    """Asks for a label of a feature, by some of the examples of its page and the tokens that it promotes."""
    texts = "\n".join(f"{number}. {_marked(example)}" for number, example in enumerate(examples, 1))
    promoted = ", ".join(json.dumps(str(row["token"])) for row in (page.get("top_logits") or ())[:_PROMOTED])
    line = f"\nTokens that it makes more likely next: {promoted}\n" if promoted else ""
    return _LABEL.format(texts=texts, promoted=line)


def label_in(answer: str) -> str | None:
    """The label that an answer gives: one line of at most `LONGEST` characters; None where it says nothing.

    What is in it is another program's text: it is to be escaped wherever it is shown.
    """
    for line in answer.splitlines():
        text = re.sub(r"^\W*(label|answer)\W*:\s*", "", line.strip(), flags=re.IGNORECASE)
        label = one_line(text.strip(" \t*_#`\"'").rstrip("."), LONGEST)
        if label.strip("-•"):
            return label
    return None


def detection_question(label: str, texts: Sequence[str]) -> str:
    """Asks which of some texts a label fits."""
    listed = "\n".join(f"{number}. {_quoted(text)}" for number, text in enumerate(texts, 1))
    return _DETECTION.format(label=json.dumps(label, ensure_ascii=False), n=len(texts), texts=listed)


def chosen_in(answer: str, n: int) -> set[int] | None:
    """The texts, from 0, that an answer chose of ``n``: those of its last list; None where it holds no list of them."""
    lists = _LIST.findall(answer)
    if not lists:
        return None
    numbers, known = set(re.findall(r"\d+", lists[-1])), {str(i + 1): i for i in range(n)}
    return {known[number] for number in numbers} if numbers <= known.keys() else None


def _quoted(text: str) -> str:
    """A corpus' text in one line, in which a server reads no ``<|im_end|>`` as the end of the question."""
    return one_line(text, 2000).replace("<|", "< |")


def _marked(example: Mapping[str, Any]) -> str:
    tokens, acts, peak = list(map(str, example["tokens"])), example["activations"], int(example["peak"])
    top = float(acts[peak])
    if not top:
        return _quoted("".join(tokens))
    shares = [float(a or 0) / top for a in acts]  # of a neuron below zero too
    start, stop = max(0, peak - _BEFORE), peak + _AFTER + 1
    shown = [f"<<{t}>>" if share >= _MARKED else t for t, share in zip(tokens, shares, strict=True)]
    strongest = sorted(range(start, min(stop, len(tokens))), key=lambda i: -shares[i])[:_STRONGEST]
    listed = [f"{json.dumps(tokens[i])} {max(1, round(10 * shares[i]))}" for i in strongest if shares[i] >= _MARKED]
    return f"{_quoted(''.join(shown[start:stop]))}  ({', '.join(listed)})"
