"""Subject-verb agreement over an attractor: "I believe that the keys near the cabinet outside" -> " are", not " is".

The attractor noun, nearer to the verb, has the other number; the corrupted prompt flips the subject only.
After Linzen, Dupoux & Goldberg 2016 (arXiv:1611.01368) and Finlayson et al. 2021 (arXiv:2106.06087).
"""

from __future__ import annotations

from collections.abc import Iterator

from mechstudy.behaviours.generator import Behaviour, Draft, Rank, Slot, Template

# Words follow the attractor, so that `attractor` and `last` are different tokens. The splits share no preposition and
# no closing words.
TEMPLATES = {
    "train": (
        Template("behind-right-now", "I think that the {subject} behind the {attractor} right now"),
        Template("near-outside", "I believe that the {subject} near the {attractor} outside"),
        Template("by-over-there", "He says that the {subject} by the {attractor} over there"),
        Template("under-today", "As far as I know, the {subject} under the {attractor} today"),
    ),
    "test": (
        Template("across-from-here", "We know that the {subject} across from the {attractor} here"),
        Template("beside-at-the-moment", "They hope that the {subject} beside the {attractor} at the moment"),
        Template("next-to-in-town", "She thinks that the {subject} next to the {attractor} in town"),
        Template("around-at-present", "It seems that the {subject} around the {attractor} at present"),
    ),
}

# "singular plural". Subjects are people, animals and things that can be anywhere; attractors are landmarks.
SUBJECTS = {
    "train": """doctor doctors, teacher teachers, lawyer lawyers, farmer farmers, singer singers, king kings,
        boy boys, student students, soldier soldiers, writer writers, man men, visitor visitors,
        dog dogs, horse horses, bird birds, cow cows, lion lions, mouse mice,
        key keys, book books, box boxes, picture pictures, chair chairs, bottle bottles, letter letters,
        flower flowers, toy toys, bag bags, lamp lamps, shoe shoes, ball balls, cup cups,
        bike bikes, basket baskets, camera cameras, knife knives""",
    "test": """nurse nurses, artist artists, engineer engineers, driver drivers, actor actors, guard guards,
        girl girls, child children, woman women, player players, worker workers, scientist scientists,
        cat cats, pig pigs, rabbit rabbits, bear bears, snake snakes, goat goats,
        phone phones, coin coins, plate plates, painting paintings, table tables, glass glasses, map maps,
        plant plants, drum drums, hat hats, candle candles, coat coats, stone stones, bowl bowls,
        bench benches, bucket buckets, clock clocks, sign signs""",
}
ATTRACTORS = {
    "train": """cabinet cabinets, house houses, tree trees, car cars, tower towers, school schools,
        wall walls, garden gardens, river rivers, shop shops, desk desks, door doors, hotel hotels,
        barn barns, hill hills, train trains, statue statues, bed beds, museum museums, mountain mountains""",
    "test": """fence fences, building buildings, truck trucks, church churches, window windows, farm farms,
        gate gates, bridge bridges, lake lakes, castle castles, boat boats, sofa sofas, store stores,
        forest forests, office offices, bus buses, fountain fountains, shelf shelves, library libraries,
        rock rocks""",
}


def _nouns(text: str) -> list[tuple[str, str]]:
    """Pairs (singular, plural) of a word list."""
    return [(singular, plural) for singular, plural in (entry.split() for entry in text.split(","))]


def _slots(split: str, rank: Rank) -> Iterator[Slot]:
    for template in TEMPLATES[split]:
        for subject in _nouns(SUBJECTS[split]):
            for attractor in _nouns(ATTRACTORS[split]):
                for number in (0, 1):
                    yield _slot(template, subject, attractor, number)


def _slot(template: Template, subject: tuple[str, str], attractor: tuple[str, str], number: int) -> Slot:
    def drafts() -> Iterator[Draft]:
        clean, corrupted = (
            template.render({"subject": noun, "attractor": attractor[1 - number]}, ("subject", "attractor"))
            for noun in (subject[number], subject[1 - number])
        )
        answer, wrong = (" is", " are") if number == 0 else (" are", " is")
        yield Draft(clean, corrupted, answer, wrong)

    return Slot(
        balance=("singular", "plural")[number],
        template=template.name,
        item=subject[0],
        group=f"{template.name}/{subject[0]}",
        key=f"{template.name}/{subject[number]}/{attractor[0]}",
        drafts=drafts,
    )


BEHAVIOUR = Behaviour(
    name="subject_verb_agreement",
    description="The verb agrees with the subject, not with a nearer noun of the other number.",
    positions=("subject", "attractor", "last"),
    templates=TEMPLATES,
    lexicon={
        split: frozenset(
            noun for text in (SUBJECTS[split], ATTRACTORS[split]) for nouns in _nouns(text) for noun in nouns
        )
        for split in TEMPLATES
    },
    slots=_slots,
)
