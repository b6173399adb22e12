"""One prompt as text: its most probable next tokens, the answers that are compared, and the prompt pair."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechstudy.behaviours.pairing import tokenised
from mechstudy.behaviours.readers import Broken
from mechstudy.behaviours.row_checks import checked_row
from mechstudy.behaviours.schema import PromptPair
from mechstudy.behaviours.special_text import Opening
from mechstudy.behaviours.tokenise import Tokens, Unsuitable, continuation, only_token, require_open_end
from mechstudy.core.errors import MechstudyError
from mechstudy.models.context import context_length
from mechstudy.models.language_model import LanguageModel

_CANDIDATES = 50  # most probable tokens among which the model's own answer is looked for
_NO_PROMPT = 'a text such as "The keys to the cabinet"'


def next_tokens(model: LanguageModel, prompt: str, n: int = 10, *, instruction: str | None = None) -> pl.DataFrame:
    """The model's most probable next tokens.

        ms.next_tokens(model, "The keys to the cabinet")

    Args:
        model: the model.
        prompt: text that is not empty.
        n: how many.
        instruction: the user's turn of the model's chat template, which the prompt then begins to answer.

    Returns:
        A row for each, the most probable first: rank (from 1), token_id, token, logit, probability.

    Raises:
        MechstudyError: an empty prompt, or ``n`` below 1.
    """
    if n < 1:
        raise MechstudyError(f"{n} next tokens", fix="n=10, or another number above 0")
    return _most_probable(model, _next_logits(model, _tokens(model, instruction), prompt), n)


@dataclass(frozen=True)
class ComparedAnswers:
    """The answers whose logits are compared, as they follow the prompt.

    ``remarks`` are sentences on those that the model chose, empty where both were given; ``next_tokens`` is the frame
    of `next_tokens`, and ``logit_difference`` logit(answer) - logit(wrong_answer).
    """

    answer: str
    wrong_answer: str
    logit_difference: float
    remarks: tuple[str, ...]
    next_tokens: pl.DataFrame


def compared_answers(
    model: LanguageModel,
    prompt: str,
    answer: str | None = None,
    wrong_answer: str | None = None,
    *,
    corrupted: str | None = None,
    n: int = 5,
    instruction: str | None = None,
) -> ComparedAnswers:
    """Two answers of one token each; one that is not given is the model's own.

    Args:
        model: the model.
        prompt: text that is not empty.
        answer: the answer with its leading space; None takes the most probable token that is not the wrong answer.
        wrong_answer: the one it is compared with; None takes the most probable token that is not the answer, after the
            corrupted prompt if there is one.
        corrupted: the corrupted prompt.
        n: rows of ``next_tokens``.
        instruction: the user's turn of the model's chat template, which the prompt then begins to answer.

    Raises:
        MechstudyError: an empty prompt; an answer of several tokens, one that the tokenizer merges with the prompt, or
            one without the leading space with which the model finds it more probable; two answers of one token.
    """
    tokens = _tokens(model, instruction)
    logits_V = _next_logits(model, tokens, prompt)
    require_open_end(tokens)
    given = {
        name: (text, _token_of(model, tokens, prompt, name, text, logits_V))
        for name, text in (("answer", answer), ("wrong_answer", wrong_answer))
        if text is not None
    }
    if len({token for _, token in given.values()}) < len(given):
        raise MechstudyError(f"answers {answer!r} and {wrong_answer!r} are the same token", fix="two different answers")
    remarks = []
    for name, source in (("answer", prompt), ("wrong_answer", corrupted or prompt)):
        if name not in given:
            own_V = logits_V if source == prompt else _next_logits(model, tokens, source)
            text, token = _own(model, tokens, prompt, own_V, {token for _, token in given.values()}, name)
            after = "" if source == prompt else " after the corrupted prompt"
            than = f" other than {next(iter(given.values()))[0]!r}" if given else ""
            called = name.replace("_", " ")
            remarks.append(f"no {called} is given: {text!r} is the model's most probable next token{after}{than}")
            given[name] = text, token
    (right, right_token), (wrong, wrong_token) = given["answer"], given["wrong_answer"]
    return ComparedAnswers(
        right,
        wrong,
        float(logits_V[right_token] - logits_V[wrong_token]),
        tuple(remarks),
        _most_probable(model, logits_V, n),
    )


def prompt_pair(
    model: LanguageModel,
    clean: str,
    corrupted: str | None = None,
    *,
    answer: str,
    wrong_answer: str,
    positions: Mapping[str, str | int] | None = None,
    instruction: str | None = None,
) -> PromptPair:
    """A prompt pair from texts, tokenised for the model.

        pair = ms.prompt_pair(
            model, "The keys to the cabinet", "The key to the cabinet", answer=" are", wrong_answer=" is"
        )

    Args:
        model: whose tokenizer is used.
        clean: the clean prompt.
        corrupted: the corrupted prompt, to which ``wrong_answer`` is right; may have another number of tokens: tokens
            are then aligned from both ends (`PromptPair.corrupted_at`).
        answer: right after the clean prompt, with its leading space. Its first token is compared.
        wrong_answer: right after the corrupted one.
        positions: names of tokens: a substring of the clean prompt, or a token's index; ``last`` is always named.
        instruction: the user's turn of the model's chat template, which both prompts then begin to answer.

    Raises:
        MechstudyError: an empty text, the same prompt twice, answers that begin with the same token or that the
            tokenizer merges with a prompt, a position that is not there, a prompt beyond learned positions.
    """
    tokens = _tokens(model, instruction)
    require_open_end(tokens)
    row = {"clean": clean, "answer": answer, "wrong_answer": wrong_answer, "positions": dict(positions or {})}
    if corrupted is not None:
        row["corrupted"] = corrupted
    try:
        return tokenised(
            checked_row(row, ("clean", "answer", "wrong_answer")),
            "prompt",
            tokens,
            Opening(tokens),
            context_length(model.hf.config.to_dict()),
            align=True,
            answer_sets=None,
            whole=False,
        )
    except Broken as error:
        raise MechstudyError(error.what, fix=error.fix) from error


def _tokens(model: LanguageModel, instruction: str | None) -> Tokens:
    return Tokens(partial(model.encode, instruction=instruction))


@torch.no_grad()
def _next_logits(model: LanguageModel, tokens: Tokens, prompt: str) -> Float[Tensor, " v"]:
    ids = tokens(prompt) if prompt else ()
    if not ids:
        raise MechstudyError("the prompt is empty", fix=_NO_PROMPT)
    context = context_length(model.hf.config.to_dict())
    if context is not None and context.learned and len(ids) > context.n:
        raise MechstudyError(context.exceeded(len(ids)), fix=f"a prompt of at most {context.n} tokens")
    logits = model.forward(torch.tensor([ids])).logits
    assert logits is not None
    return logits[0].double().cpu()


def _most_probable(model: LanguageModel, logits_V: Tensor, n: int) -> pl.DataFrame:
    top = logits_V.topk(min(n, len(logits_V)))
    return pl.DataFrame(
        {
            "rank": range(1, len(top.indices) + 1),
            "token_id": top.indices.tolist(),
            "token": model.token_strings(top.indices.tolist()),
            "logit": top.values.tolist(),
            "probability": logits_V.softmax(-1)[top.indices].tolist(),
        }
    )


def _own(
    model: LanguageModel, tokens: Tokens, prompt: str, logits_V: Tensor, taken: Collection[int], name: str
) -> tuple[str, int]:
    """The most probable token, but those that are taken, that is a text which follows the prompt; and its id."""
    ids = logits_V.topk(min(_CANDIDATES, len(logits_V))).indices.tolist()
    for token, text in zip(ids, model.token_strings(ids), strict=True):
        for follows in (text, f" {text}"):  # some tokenizers leave out the space of a token that is decoded alone
            if token not in taken and _ids(tokens, prompt, follows) == (token,):
                return follows, token
    raise MechstudyError(
        "none of the model's most probable next tokens can follow the prompt as text",
        fix=f"name the {name.replace('_', ' ')}, after a prompt that does not end with a space",
    )


def _ids(tokens: Tokens, prompt: str, text: str) -> tuple[int, ...]:
    """The tokens of a text after the prompt; none where the two merge."""
    try:
        return continuation(tokens, prompt, text)
    except Unsuitable:
        return ()


def _token_of(
    model: LanguageModel, tokens: Tokens, prompt: str, name: str, text: str, logits_V: Float[Tensor, " v"]
) -> int:
    """The one token of an answer."""
    called = name.replace("_", " ")
    if not text:
        raise MechstudyError(f"the {called} is empty", fix='an answer such as " are"')
    ids = _ids(tokens, prompt, text)
    if not text[0].isspace() and not prompt[-1].isspace():
        spaced = _ids(tokens, prompt, f" {text}")
        if len(spaced) == 1 and (len(ids) != 1 or logits_V[spaced[0]] > logits_V[ids[0]]):
            p_V = logits_V.softmax(-1)
            alone = f"{text!r} {float(p_V[ids[0]]):.2%}, " if len(ids) == 1 else ""
            raise MechstudyError(
                f"the {called} {text!r} has no leading space, and the model expects one here",
                facts={"next token": f"{alone}{' ' + text!r} {float(p_V[spaced[0]]):.2%}"},
                fix=repr(f" {text}"),
            )
    if not ids:
        try:
            continuation(tokens, prompt, text)
        except Unsuitable as error:
            raise MechstudyError(error.what, fix=error.fix) from error
    return only_token(ids, model.token_strings(ids), f"the {called} {text!r}", "one is compared")
