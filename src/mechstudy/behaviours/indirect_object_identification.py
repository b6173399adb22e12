"""Indirect object identification: "Mary and John went to the store. John gave a drink to" -> " Mary".

The answer is the name that is not repeated. The corrupted prompt repeats the other name, so its right answer is the
other one. After Wang et al. 2022 (arXiv:2211.00593).
"""

from __future__ import annotations

from collections.abc import Iterator

from mechstudy.behaviours.generator import Behaviour, Draft, Rank, Slot, Template, pick

ROLES = ("io", "subject1", "subject2")
"""Positions are named by the clean prompt's roles: the indirect object, and the subject's two mentions."""
PARTNERS = 20  # names that may follow each first name in a template, so that no two names occur together twice in it

TEMPLATES = {
    "train": (
        Template("then-went", "Then, {name1} and {name2} went to the {place}. {subject2} gave a {object} to"),
        Template("after-went", "After {name1} and {name2} went to the {place}, {subject2} gave a {object} to"),
        Template(
            "when-got-decided",
            "When {name1} and {name2} got a {object} at the {place}, {subject2} decided to give it to",
        ),
        Template(
            "on-monday-sat",
            "On Monday, {name1} and {name2} sat down near the {place}, and {subject2} gave a {object} to",
        ),
        Template(
            "one-day-walked",
            "One day, {name1} and {name2} walked to the {place} together. There, {subject2} gave a {object} to",
        ),
    ),
    "test": (
        Template(
            "while-were", "While {name1} and {name2} were working at the {place}, {subject2} handed a {object} to"
        ),
        Template(
            "yesterday-spent",
            "Yesterday, {name1} and {name2} spent an hour at the {place}. {subject2} gave a {object} to",
        ),
        Template(
            "long-argument",
            "Then, {name1} and {name2} had a long argument in the {place}. Afterwards {subject2} offered a {object} to",
        ),
        Template(
            "as-soon-as-arrived",
            "As soon as {name1} and {name2} arrived at the {place}, {subject2} showed a {object} to",
        ),
        Template(
            "last-week-found",
            "Last week, {name1} and {name2} found a {object} near the {place}, and {subject2} gave it to",
        ),
    ),
}

NAMES = {
    "train": """Mary John Tom James Emma Paul Anna Laura Peter Alice Simon Kate Robert Lucy Daniel Rachel George
        Julia Kevin Lisa Eric Karen Scott Nancy Brian Helen Frank Diana Henry Olivia Alex Maria Steven Jessica
        Adam Susan Andrew Angela Oliver Sophia Philip Margaret Roger Barbara Jack Christine Leo Monica""",
    "test": """Sarah David Michael Linda William Emily Richard Sophie Thomas Claire Charles Martha Joseph Amy
        Matthew Jane Edward Sandra Jason Rebecca Ryan Ruth Jacob Carol Gary Hannah Nicholas Elizabeth Jonathan
        Michelle Stephen Amanda Larry Melissa Justin Deborah Brandon Stephanie Gregory Catherine Benjamin
        Samantha Samuel Janet Patrick Victoria Arthur Nicole""",
}
PLACES = {
    "train": "store park school office station restaurant hospital beach library museum",
    "test": "house garden market kitchen church shop farm hotel theater cafe",
}
OBJECTS = {
    "train": "drink book ring ball key gift letter flower ticket phone",
    "test": "cup bag pen sandwich toy coin card map hat bottle",
}


def _slots(split: str, rank: Rank) -> Iterator[Slot]:
    for template in TEMPLATES[split]:
        circle = sorted(NAMES[split].split(), key=lambda name: rank(f"{template.name}/{name}"))
        for index, name1 in enumerate(circle):
            for step in range(1, PARTNERS + 1):
                yield _slot(split, template, name1, circle[(index + step) % len(circle)], rank)


def _slot(split: str, template: Template, name1: str, name2: str, rank: Rank) -> Slot:
    key = f"{template.name}/{name1}/{name2}"
    repeats_first = rank(f"{key}/repeated") % 2 == 0

    def drafts() -> Iterator[Draft]:
        fields = {
            "name1": name1,
            "name2": name2,
            "place": pick(rank, PLACES[split].split(), f"{key}/place"),
            "object": pick(rank, OBJECTS[split].split(), f"{key}/object"),
        }
        repeated, other = (name1, name2) if repeats_first else (name2, name1)
        holes = ("name2", "name1", "subject2") if repeats_first else ("name1", "name2", "subject2")
        roles = dict(zip(ROLES, holes, strict=True))
        yield Draft(
            clean=template.render({**fields, "subject2": repeated}, roles),
            corrupted=template.render({**fields, "subject2": other}, roles),
            answer=f" {other}",
            wrong_answer=f" {repeated}",
        )

    return Slot(
        balance="answer is name2" if repeats_first else "answer is name1",
        template=template.name,
        item=name1,
        group=f"{template.name}/{'+'.join(sorted((name1, name2)))}",
        key=key,
        drafts=drafts,
    )


BEHAVIOUR = Behaviour(
    name="indirect_object_identification",
    description="The receiver is the one of two names that the sentence has not repeated.",
    positions=(*ROLES, "last"),
    templates=TEMPLATES,
    lexicon={split: frozenset(f"{NAMES[split]} {PLACES[split]} {OBJECTS[split]}".split()) for split in TEMPLATES},
    slots=_slots,
)
