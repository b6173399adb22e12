"""Users' own prompt files and the model's tokenizer, before anything is submitted. No weights, seldom torch."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from mechstudy.behaviours.user import load_jsonl
from mechstudy.core.errors import MechstudyError
from mechstudy.models.tokenizer import bare_encode, encode, load_tokenizer
from mechstudy.runner.study_run import OpenedStudy


def prompts_refusal(opened: OpenedStudy, names: Collection[str]) -> MechstudyError | None:
    """What is wrong with the first broken file of these units; None where nothing is, or the tokenizer is not here.

    A file that the bare tokenizer finds nothing wrong with is believed; one that it does is looked at again with the
    tokenizer that the unit will use, whose word counts.
    """
    model = opened.study.model
    units = [unit for unit in opened.units if unit.name in names and unit.phase == "prompts" and unit.spec.get("file")]
    bare = bare_encode(opened.model) if units and opened.model is not None else None
    if bare is None or opened.model is None:
        return None
    for unit in units:
        path = opened.options.base / unit.spec["file"]
        try:
            load_jsonl(path, bare)
        except MechstudyError:
            tokenizer = load_tokenizer(opened.model, trust_remote_code=model.trust_remote_code)
            instruction = model.chat_instruction if model.chat else None
            try:
                load_jsonl(path, partial(_encode, tokenizer, instruction, model.source))
            except MechstudyError as error:
                return error
    return None


def _encode(tokenizer: object, instruction: str | None, name: str, text: str) -> list[int]:
    return encode(tokenizer, text, instruction, name)
