"""Checks users' prompt files with the model's tokenizer before anything is submitted."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from mechstudy.behaviours.user import load_jsonl
from mechstudy.core.errors import MechstudyError
from mechstudy.models.tokenizer import bare_encode, encode, load_tokenizer
from mechstudy.planning.opened_study import OpenedStudy
from mechstudy.study.phases.prompts import PromptsPhase, PromptsSpec


def prompts_refusal(opened: OpenedStudy, names: Collection[str]) -> MechstudyError | None:
    """The error of the first broken file of these units; None where there is none, or no tokenizer yet.

    A file that fails with the bare tokenizer is checked again with the tokenizer that the unit will use, which loads
    torch.
    """
    model = opened.study.model
    specs = [PromptsSpec.of(unit) for unit in opened.made_by(PromptsPhase) if unit.name in names]
    files = [spec.file for spec in specs if spec.file]
    bare = bare_encode(opened.model) if files and opened.model is not None else None
    if bare is None or opened.model is None:
        return None
    for file in files:
        path = opened.options.base / file
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
