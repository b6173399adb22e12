"""Checks of a study that need no model. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mechstudy.behaviours.hub_files import is_hub
from mechstudy.behaviours.registry import BEHAVIOURS
from mechstudy.behaviours.user import Outline, PromptSource, first_lines, outline
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.corpus.bundled import foreign_text
from mechstudy.machine.devices import DEVICES
from mechstudy.report.claims import ALPHA
from mechstudy.statistics.permutation import smallest_p
from mechstudy.study.study import READING, BehaviourConfig, Study

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_WORDS = {
    "attribution.n_prompts": "graphs of",
    "interventions.n_discovery": "discovery on",
    "interventions.n_samples": "interventions on",
}
_SAMPLED = "a seeded sample that keeps the shares of templates and groups"
_NOT_A_NAME = re.compile(r"all|last(-\d+)?")


def outlines(study: Study, base: Path) -> dict[str, Outline]:
    """Number of prompts per split and position names, of each behaviour with its own file.

    Raises:
        MechstudyError: the file is missing (``where`` is the field), or a line is invalid (file and line).
    """
    result = {}
    for number, behaviour in enumerate(study.behaviours):
        if behaviour.file is None:
            continue
        reading = {name: getattr(behaviour, name) for name in READING}
        path = base / behaviour.file
        if not is_hub(behaviour.file) and not path.is_file():
            raise MechstudyError(
                f"there is no file {path}",
                where=f"behaviours.{number}.file",
                fix="a path relative to the study file's folder, or an absolute one",
            )
        try:
            source = PromptSource.named(behaviour.file, base, reading)
        except MechstudyError as error:
            what = error.what if error.where is None else f"{error.what} ({error.where})"
            where = f"behaviours.{number}.file"
            raise MechstudyError(what, where=where, facts=error.facts, fix=error.fix) from error
        result[behaviour.name] = outline(source)
    return result


def check_study(study: Study, own_prompts: Mapping[str, Outline]) -> None:
    """Refuse devices and position names that do not exist.

    Raises:
        MechstudyError: ``where`` is the field.
    """
    device = study.compute.device
    if not _DEVICE.fullmatch(device):
        raise MechstudyError(f"{device!r} is not a device", where="compute.device", fix=DEVICES)
    for behaviour in study.behaviours:
        names = position_names(behaviour, own_prompts)
        for item in study.capture.positions.items:
            if item not in names and not _NOT_A_NAME.fullmatch(item):
                guess = nearest(item, [*names, "all", "last"])
                raise MechstudyError(
                    f"{behaviour.name} has no position called {item!r}",
                    where="capture.positions",
                    facts={"positions": ", ".join(names), "also": "all, last-N"},
                    fix=f"did you mean {guess!r}?" if guess else "one of these",
                )


def position_names(behaviour: BehaviourConfig, own_prompts: Mapping[str, Outline]) -> tuple[str, ...]:
    """The names that every prompt of the behaviour has."""
    if behaviour.name in own_prompts:
        return own_prompts[behaviour.name].positions
    return tuple(dict.fromkeys((*BEHAVIOURS[behaviour.name].positions, "last")))


def notes(study: Study, own_prompts: Mapping[str, Outline]) -> Iterator[str]:
    """What the study will leave out, whose text its corpus is, samples of users' prompts, and numbers out of reach."""
    if study.corpus.source == "bundled" and (foreign := foreign_text(study.model.source)) is not None:
        yield foreign
    for number, behaviour in enumerate(study.behaviours):
        if behaviour.name in own_prompts:
            yield from _file_notes(f"behaviours.{number}", behaviour, own_prompts[behaviour.name])
    if study.no_graphs is not None:
        yield f"attribute, features and intervene are left out: {study.no_graphs}"
        return
    for behaviour in study.behaviours:
        if (few := _too_few_groups(study, behaviour, own_prompts)) is not None:
            yield few
        n = dict(n_prompts(behaviour, own_prompts))
        asked = (
            ("attribution.n_prompts", study.attribution.n_prompts, "train", "graphs"),
            ("interventions.n_discovery", study.interventions.n_discovery, "train", "prompts to discover on"),
            ("interventions.n_samples", study.interventions.n_samples, "test", "prompts to intervene on"),
        )
        for field, count, split, what in asked:
            explicit = field.partition(".")[2] in getattr(study, field.partition(".")[0]).model_fields_set
            if explicit and count > n[split]:
                yield f"{behaviour.name} has {n[split]} {split} prompts: {n[split]} {what}, not {count} ({field})"
            if count < n[split] and behaviour.name in own_prompts:
                yield f"{behaviour.name}: {_WORDS[field]} {count} of {n[split]} {split} prompts, {_SAMPLED} ({field})"


def _file_notes(field: str, behaviour: BehaviourConfig, outline: Outline) -> Iterator[str]:
    """Lines of the behaviour's file that are left out or not asked for, and remarks on them."""
    name = behaviour.name
    if outline.left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in outline.left_out.items())
        total, lines = sum(outline.left_out.values()), first_lines(outline.left_out_lines)
        yield f"{name}: {total} of {outline.n_lines} lines of {behaviour.file} are left out: {kinds} ({lines})"
    if outline.n_unequal:
        yield (
            f"{name}: clean and corrupted have different numbers of words in {outline.n_unequal} of"
            f" {sum(outline.n.values())} prompts: those of unequal token length will be left out"
            f" (`mechstudy prompts` counts them), unless {field}.align: ends"
        )
    if not outline.has_corrupted:
        yield f"{name} has no corrupted prompts: patching, and the baseline of steering, are left out"
    for split, asked in (("train", behaviour.n_train), ("test", behaviour.n_test)):
        if (n := outline.n[split]) > asked:
            yield f"{name}: {asked} of {n} {split} prompts are used, {_SAMPLED} ({field}.n_{split})"
    yield from (f"{name}: {remark}" for remark in outline.remarks)


def _too_few_groups(study: Study, behaviour: BehaviourConfig, own_prompts: Mapping[str, Outline]) -> str | None:
    """Why no claim about the behaviour can hold, if its prompts for interventions are of too few groups."""
    n = min(n_prompts(behaviour, own_prompts)["test"], study.interventions.n_samples)
    if behaviour.name in own_prompts:
        n = min(n, own_prompts[behaviour.name].n_groups["test"])
    if (least := smallest_p(n, study.interventions.permutations)) < ALPHA:
        return None
    groups = (
        "one group: there are no intervals, and p is 1" if n == 1 else f"{n} groups: p cannot fall below {least:.2g}"
    )
    return (
        f"{behaviour.name}: the test prompts are of {groups}, so no claim can hold (needs p < {ALPHA}; "
        f"{_enough_groups()} groups or more can reach it)"
    )


def _enough_groups() -> int:
    return next(n for n in range(1, 100) if smallest_p(n) < ALPHA)


def n_prompts(behaviour: BehaviourConfig, own_prompts: Mapping[str, Outline]) -> Mapping[str, int]:
    """Prompts per split: as many as the study asks for, or all of the file if it has fewer."""
    asked = {"train": behaviour.n_train, "test": behaviour.n_test}
    if behaviour.name not in own_prompts:
        return asked
    return {split: min(n, own_prompts[behaviour.name].n[split]) for split, n in asked.items()}
