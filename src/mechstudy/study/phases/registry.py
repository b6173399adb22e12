"""The phases of a study, in order. A new phase is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mechstudy.core.errors import MechstudyError, nearest

if TYPE_CHECKING:
    from mechstudy.monitoring.expected_usage import PhaseProfile
    from mechstudy.study.phases.base import Phase
    from mechstudy.study.unit import Retention

PHASES = {
    "model": "model:ModelPhase",
    "prompts": "prompts:PromptsPhase",
    "baseline": "baseline:BaselinePhase",
    "corpus": "corpus:CorpusPhase",
    "capture_prompts": "capture:PromptCapturePhase",
    "capture": "capture:CorpusCapturePhase",
    "stream": "stream:StreamPhase",
    "train": "train:TrainPhase",
    "variant": "train:VariantPhase",
    "published": "published:PublishedPhase",
    "attribute": "attribute:AttributePhase",
    "features": "features:FeaturesPhase",
    "intervene": "intervene:IntervenePhase",
    "verdict": "verdict:VerdictPhase",
    "report": "report:ReportPhase",
}
COMMANDS = {  # of phases, with the first paragraph of their help
    "prompts": "Phase 0: contrastive prompt pairs of every behaviour, train and test.",
    "baseline": "Phase 1: does the model show the behaviour? Accuracy, logit differences, and the gate.",
    "capture": "Phase 2: activations of the prompts and of the training corpus, to disk.",
    "train": "Phase 3: one dictionary (SAE or transcoder) per layer, and its variants. Interrupted, it "
    "resumes by itself.",
    "attribute": "Phase 4: attribution graphs of every behaviour, per prompt and aggregated.",
    "intervene": "Phase 5: ablation, patching, resampling, steering and edges, on test prompts discovery has not seen.",
    "verdict": "Phase 6: does the circuit's claim hold? Sufficiency, necessity, rivals, adversary, stability and more.",
}


@cache
def phase(reference: str) -> Phase[Any, Any]:
    """The phase of a kind, or the object that ``module:attribute`` names.

    Raises:
        MechstudyError: there is no such kind.
    """
    if reference in PHASES:
        module, _, name = PHASES[reference].partition(":")
        built_in: Phase[Any, Any] = getattr(import_module(f"mechstudy.study.phases.{module}"), name)()
        return built_in
    module, colon, name = reference.partition(":")
    if not colon:
        raise _unknown(reference, PHASES)
    other: Phase[Any, Any] = getattr(import_module(module), name)
    return other


def phases() -> list[Phase[Any, Any]]:
    """All phases, in order."""
    return [phase(kind) for kind in PHASES]


def names() -> tuple[str, ...]:
    """The distinct names of phases, in order."""
    return tuple(dict.fromkeys(item.name for item in phases()))


def phase_of(name: str, spec: Mapping[str, Any]) -> Phase[Any, Any] | None:
    """The phase that writes artifacts of this name and spec; None if this version has no such phase."""
    return next((item for item in phases() if item.name == name and item.writes(spec)), None)


def check_name(name: str) -> None:
    """Refuses a name that no phase has.

    Raises:
        MechstudyError: with the nearest name.
    """
    if name not in names():
        raise _unknown(name, names())


def _unknown(name: str, valid: Iterable[str]) -> MechstudyError:
    guess, facts = nearest(name, valid), {"phases": ", ".join(valid)}
    return MechstudyError(f"there is no phase {name!r}", facts=facts, fix=f"did you mean {guess!r}?" if guess else None)


def check_kinds(retain: Mapping[str, Retention]) -> None:
    """Refuses kinds of artifacts that do not exist, and retentions that delete what is always kept.

    Raises:
        MechstudyError: with the kinds that can be deleted.
    """
    for kind, retention in retain.items():
        deletable = ", ".join(item.kind for item in phases() if item.payload)
        if kind not in PHASES:
            guess = nearest(kind, PHASES)
            fix = f"did you mean {guess!r}?" if guess else None
            raise MechstudyError(f"there is no kind of artifact {kind!r}", facts={"kinds": deletable}, fix=fix)
        if retention != "keep" and not phase(kind).payload:
            raise MechstudyError(
                f"{kind} is always kept: it is small, and the report reads it",
                facts={"kinds that can be deleted": deletable},
                fix=f"leave out {kind}",
            )


def usage_profiles() -> dict[str, PhaseProfile]:
    """The expected use of the machine of each phase, by name, in order."""
    return {
        item.name: replace(item.usage, command=item.command.name if item.command is not None else "run")
        for item in phases()
    }
