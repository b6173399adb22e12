"""The date of chat templates that write one: the study's own, the one that a run began with, or today's.

It is part of the prompts' spec, so that one id means the same tokens on every day. A run records it in
``resolved.json``, as `source_choice` does its choice. Torch-free.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import date
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.models.chat_clock import chat_template, reads_the_clock
from mechstudy.planning.source_choice import RESOLVED, keep
from mechstudy.study.phases.prompts import PromptsPhase
from mechstudy.study.run_folder import RunFolder
from mechstudy.study.study import Study

FIELD = "model.chat_date"


def with_chat_date(study: Study, model: Path | None, run: Path) -> tuple[Study, list[str]]:
    """The study with the date that its prompts are rendered at, None where its template has no clock; and notes.

    Args:
        model: the model's folder; None where it is not on this machine.
        run: the run's folder, which may hold the date of an earlier call.

    Raises:
        MechstudyError: a chat is asked for, and the model has no chat template.
    """
    own = study.model.chat_date
    if not study.model.chat:
        return _dated(study, None), [f"{FIELD} is not used: model.chat is false"] if own else []
    if model is None:
        return _dated(study, own or _recorded(run)), []
    template = chat_template(model)
    if template is None:
        raise MechstudyError(
            "the model's folder has no chat template",
            where="model.chat",
            facts={"looked for": "chat_template.jinja, chat_template in chat_template.json and tokenizer_config.json"},
            fix="model.chat: false; or the chat (instruct) version of the model",
        )
    if not reads_the_clock(template):
        return _dated(study, None), [f"{FIELD} is not used: the model's chat template has no date"] if own else []
    recorded = None if own else _recorded(run)
    day = own or recorded or date.today().isoformat()
    why = "as the study says" if own else f"as this run began; {FIELD} sets another" if recorded else "today"
    keeps = "" if own or recorded else f"; {FIELD}: {day} in the study gives other runs the same prompts"
    return _dated(study, day), [f"the model's chat template writes the date into every prompt: {day} ({why}){keeps}"]


def record_chat_date(run: Path, study: Study) -> None:
    """Keeps the date of a run that begins."""
    if study.model.chat_date is not None:
        keep(run, FIELD, study.model.chat_date)


def _dated(study: Study, day: str | None) -> Study:
    if study.model.chat_date == day:
        return study
    return study.model_copy(update={"model": study.model.model_copy(update={"chat_date": day})})


def _recorded(run: Path) -> str | None:
    """The date that a run began with: its record, or that of its newest prompts."""
    with suppress(MechstudyError, KeyError, TypeError):
        if (run / RESOLVED).exists():
            return str(read_json(run / RESOLVED)[FIELD])
    made = [
        a for a in RunFolder(run).store.all() if a.phase == PromptsPhase.name and a.manifest["spec"].get("chat_date")
    ]
    newest = max(made, key=lambda artifact: str(artifact.manifest.get("started")), default=None)
    return None if newest is None else str(newest.manifest["spec"]["chat_date"])
