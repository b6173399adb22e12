"""Prompts of a chat template with a clock: one id, the same tokens, on every day."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.planning import chat_date
from mechstudy.planning.opened_study import OpenedStudy, open_study
from mechstudy.runner.study_run import execute
from tests.support.tiny_study import write_study

CLOCK = "{{ strftime_now('%d %b %Y %H:%M') }} {{ messages[0].content }}"


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """A study whose model has such a template."""
    monkeypatch.setenv("MECHSTUDY_CACHE", str(tmp_path / "cache"))
    file = write_study(tmp_path, n_prompts=3)
    (tmp_path / "model" / "chat_template.jinja").write_text(CLOCK)
    return file


def on(monkeypatch, day: str) -> None:
    class Date(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return datetime.date.fromisoformat(day)

    monkeypatch.setattr(chat_date, "date", Date)


def opened(study: Path, run: str, *overrides: str) -> OpenedStudy:
    return open_study(study, ("model.chat=true", *overrides), out=study.parent / run)


def prompts(study: OpenedStudy) -> tuple[str, list[int]]:
    """The id of the prompts, run where they are missing, and their first tokens."""
    assert execute(study, ["prompts[mine]"]).exit_code == 0
    node = study.evaluate().nodes["prompts[mine]"]
    assert node.artifact is not None and node.id is not None
    first = json.loads((node.artifact.path / "train.jsonl").read_text().splitlines()[0])
    return node.id, first["clean_tokens"]


def test_a_run_keeps_its_date_and_another_day_has_another_id(study, monkeypatch):
    on(monkeypatch, "2025-01-30")
    first = prompts(opened(study, "run"))
    on(monkeypatch, "2025-01-31")
    again, other = opened(study, "run"), opened(study, "other")
    assert again.evaluate().nodes["prompts[mine]"].id == first[0]
    assert any("2025-01-30 (as this run began" in note for note in again.notes)
    assert any("2025-01-31 (today); model.chat_date: 2025-01-31" in note for note in other.notes)
    assert prompts(other)[0] != first[0] and prompts(other)[1] != first[1]
    (study.parent / "run" / "resolved.json").unlink()  # an archive that lacks it
    assert opened(study, "run").evaluate().nodes["prompts[mine]"].id == first[0]
    assert prompts(opened(study, "third", "model.chat_date=2025-01-30")) == first


def test_a_date_that_no_template_reads_changes_no_id_and_is_reported(study):
    (study.parent / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    plain, dated = (opened(study, "run", *sets) for sets in ((), ("model.chat_date=2025-01-30",)))
    units = [{unit.name: unit.canonical_spec for unit in study.units} for study in (plain, dated)]
    assert units[0] == units[1] and "chat_date" not in units[0]["prompts[mine]"]
    assert "model.chat_date is not used: the model's chat template has no date" in dated.notes


def test_what_is_no_date_is_refused(study):
    with pytest.raises(MechstudyError, match="'soon' is not a date"):
        opened(study, "run", "model.chat_date=soon")
