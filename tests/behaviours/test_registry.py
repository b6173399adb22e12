from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest

from mechstudy.behaviours import (
    antonym,
    country_capital,
    generator,
    indirect_object_identification,
    subject_verb_agreement,
)
from mechstudy.behaviours.registry import BEHAVIOURS, behaviour
from mechstudy.behaviours.schema import PromptPair, from_jsonl, to_jsonl
from mechstudy.core.errors import MechstudyError
from tests.support.fake_tokenizer import FakeTokenizer

SPLITS = ("train", "test")
each_behaviour = pytest.mark.parametrize("name", BEHAVIOURS)
each_split = pytest.mark.parametrize("split", SPLITS)
each_bos = pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])


def generate(name: str, n: int, split: str = "train", seed: int = 0, bos: bool = False) -> list[PromptPair]:
    return BEHAVIOURS[name].generate(FakeTokenizer(bos=bos), n, split, seed)


def in_words(prompt: str) -> list[str]:
    return re.findall(r"[\w'-]+", prompt)


def test_the_registry_holds_the_four_families_under_their_own_names():
    assert list(BEHAVIOURS) == [
        "subject_verb_agreement",
        "indirect_object_identification",
        "country_capital",
        "antonym",
    ]
    assert all(BEHAVIOURS[name].name == name for name in BEHAVIOURS)


def test_a_misspelt_behaviour_names_the_nearest_one():
    with pytest.raises(MechstudyError, match="antonym") as error:
        behaviour("antonyms")
    assert error.value.fix == "antonym"
    assert behaviour("antonym") is BEHAVIOURS["antonym"]


@each_behaviour
@each_split
@each_bos
def test_every_pair_is_contrastive_on_tokens(name: str, split: str, bos: bool):
    encode = FakeTokenizer(bos=bos)
    pairs = BEHAVIOURS[name].generate(encode, 120, split, 0)
    assert len(pairs) == len({pair.id for pair in pairs}) == len({pair.clean for pair in pairs}) == 120
    for pair in pairs:
        assert encode(pair.clean) == list(pair.clean_tokens)
        assert encode(pair.corrupted) == list(pair.corrupted_tokens)
        assert len(pair.clean_tokens) == len(pair.corrupted_tokens)
        assert encode(pair.clean + pair.answer) == [*pair.clean_tokens, *pair.answer_tokens]
        assert encode(pair.corrupted + pair.wrong_answer) == [*pair.corrupted_tokens, *pair.wrong_tokens]
        assert pair.answer_tokens[0] != pair.wrong_tokens[0]
        assert pair.answer.startswith(" ")
        assert pair.wrong_answer.startswith(" ")


@each_behaviour
@each_bos
def test_positions_are_the_last_tokens_of_their_words(name: str, bos: bool):
    family = BEHAVIOURS[name]
    encode = FakeTokenizer(bos=bos)
    lexicon = family.lexicon["test"]
    for pair in family.generate(encode, 60, "test", 0):
        assert tuple(pair.positions) == family.positions
        assert pair.positions["last"] == len(pair.clean_tokens) - 1
        places = sorted(pair.positions.values())
        assert len(set(places)) == len(places), "each on its own token"
        for tokens in (pair.clean_tokens, pair.corrupted_tokens):
            for place in places[:-1]:
                upto = "".join(map(encode.text, tokens[bos : place + 1]))
                assert any(upto.endswith(f" {word}") for word in lexicon), (upto, pair)


@each_bos
def test_names_of_indirect_object_prompts_are_positions_by_role(bos: bool):
    encode = FakeTokenizer(bos=bos)
    for pair in BEHAVIOURS["indirect_object_identification"].generate(encode, 60, "test", 0):
        said = {role: "".join(map(encode.text, pair.clean_tokens[bos : at + 1])) for role, at in pair.positions.items()}
        assert said["io"].endswith(pair.answer)
        assert said["subject1"].endswith(pair.wrong_answer) and said["subject2"].endswith(pair.wrong_answer)
        assert pair.positions["subject1"] < pair.positions["subject2"]


def test_a_word_of_several_tokens_is_named_by_its_last():
    encode = FakeTokenizer(bos=True)
    pairs = BEHAVIOURS["country_capital"].generate(encode, 100, "train", 0)
    afghanistan = next(pair for pair in pairs if "Afghanistan" in pair.clean)
    assert encode.text(afghanistan.clean_tokens[afghanistan.positions["country"]]) == "an"  # " Afgh|anist|an"


@each_behaviour
def test_bos_moves_every_position_by_one_and_nothing_else(name: str):
    without, with_bos = generate(name, 40), generate(name, 40, bos=True)
    assert [pair.clean for pair in without] == [pair.clean for pair in with_bos]
    assert [{name: place + 1 for name, place in pair.positions.items()} for pair in without] == [
        pair.positions for pair in with_bos
    ]


@each_behaviour
@each_split
def test_asking_for_more_keeps_the_earlier_pairs(name: str, split: str):
    assert generate(name, 80, split, seed=3)[:30] == generate(name, 30, split, seed=3)


@each_behaviour
def test_another_seed_gives_other_pairs(name: str):
    first, second = ({pair.clean for pair in generate(name, 40, seed=seed)} for seed in (0, 1))
    assert first != second


@each_behaviour
def test_splits_share_no_word_and_no_template(name: str):
    family = BEHAVIOURS[name]
    assert not family.lexicon["train"] & family.lexicon["test"]
    for part in ("name", "text"):
        train, test = ({getattr(t, part) for t in family.templates[split]} for split in SPLITS)
        assert not train & test
    used = {split: {pair.template for pair in generate(name, 40, split)} for split in SPLITS}
    assert used == {split: {t.name for t in family.templates[split]} for split in SPLITS}


@each_behaviour
def test_no_lexical_item_is_part_of_a_template(name: str):
    family = BEHAVIOURS[name]
    for split in SPLITS:
        for template in family.templates[split]:
            words = set(in_words(re.sub(r"{\w+}", "", template.text)))
            assert not words & (family.lexicon["train"] | family.lexicon["test"]), template


@each_behaviour
@each_split
def test_templates_are_used_equally_and_items_about_equally(name: str, split: str):
    n_templates = len(BEHAVIOURS[name].templates[split])
    pairs = generate(name, 20 * n_templates, split)
    assert set(Counter(pair.template for pair in pairs).values()) == {20}
    assert max(Counter(pair.group for pair in pairs).values()) <= 2


@each_split
def test_agreement_flips_only_the_subject(split: str):
    number = {
        noun: index
        for text in (subject_verb_agreement.SUBJECTS[split], subject_verb_agreement.ATTRACTORS[split])
        for entry in text.split(",")
        for index, noun in enumerate(entry.split())
    }
    pairs = generate("subject_verb_agreement", 100, split)
    for pair in pairs:
        clean, corrupted = in_words(pair.clean), in_words(pair.corrupted)
        ((subject, flipped),) = [words for words in zip(clean, corrupted, strict=True) if words[0] != words[1]]
        nouns = [word for word in clean if word in number]
        assert nouns[0] == subject
        assert [number[noun] for noun in nouns] == [number[subject], 1 - number[subject]]
        assert number[flipped] == 1 - number[subject]
        assert pair.answer == (" is", " are")[number[subject]]
        assert pair.wrong_answer == (" are", " is")[number[subject]]
    assert Counter(pair.answer for pair in pairs) == {" is": 50, " are": 50}


@each_split
def test_the_indirect_object_is_the_first_name_in_half_of_the_prompts(split: str):
    pairs = generate("indirect_object_identification", 100, split)
    first = 0
    for pair in pairs:
        clean, corrupted = in_words(pair.clean), in_words(pair.corrupted)
        answer, wrong = pair.answer.strip(), pair.wrong_answer.strip()
        assert (clean.count(answer), clean.count(wrong)) == (1, 2)
        assert (corrupted.count(answer), corrupted.count(wrong)) == (2, 1)
        assert sum(a != b for a, b in zip(clean, corrupted, strict=True)) == 1
        first += clean.index(answer) < clean.index(wrong)
    assert first == 50


@each_split
def test_two_names_meet_at_most_once_in_a_template(split: str):
    pairs = generate("indirect_object_identification", 1000, split)
    assert len({pair.group for pair in pairs}) == 1000
    names = indirect_object_identification.NAMES[split].split()
    assert len(names) > 2 * indirect_object_identification.PARTNERS


@each_split
def test_the_wrong_capital_is_the_corrupted_country_s(split: str):
    known = country_capital.capitals(split)
    for pair in generate("country_capital", 100, split):
        country = {capital: country for country, capital in known.items()}
        assert country[pair.answer.strip()] in pair.clean
        assert country[pair.wrong_answer.strip()] in pair.corrupted


def test_no_capital_and_no_country_is_part_of_another_s_name():
    known = country_capital.capitals("train") | country_capital.capitals("test")
    names = [*known, *known.values()]
    assert len(set(names)) == len(names)
    inside = [(a, b) for a in names for b in names if a != b and a in b]
    assert not inside


@each_split
def test_antonyms_are_of_one_kind_and_never_of_neighbouring_meaning(split: str):
    kinds = antonym.PAIRS[split]
    entry = {word: (kind, p) for kind in kinds for p in antonym.antonyms(split, kind) for word in p}
    for pair in generate("antonym", 150, split):
        answer, wrong = (entry[text.strip()] for text in (pair.answer, pair.wrong_answer))
        assert answer[0] == wrong[0]
        assert answer[1] != wrong[1]
        assert not antonym.neighbours(answer[1], wrong[1])
        assert set(answer[1]) & set(in_words(pair.clean))


def test_antonyms_are_listed_once_and_neighbours_are_listed_pairs():
    pairs = [p for split in SPLITS for kind in antonym.PAIRS[split] for p in antonym.antonyms(split, kind)]
    words = [word for pair in pairs for word in pair]
    assert len(set(words)) == len(words)
    for group in antonym.NEIGHBOURS:
        listed = group.split()
        assert all(pair in pairs for pair in zip(listed[::2], listed[1::2], strict=True)), group


@pytest.mark.parametrize("name", ["country_capital", "antonym"])
def test_asking_for_too_many_states_the_maximum(name: str):
    with pytest.raises(MechstudyError, match=r"10000 test prompts asked for, but .* allows (\d+) at most") as error:
        generate(name, 10_000, "test")
    most = int(re.search(r"(\d+) at most", str(error.value)).group(1))  # type: ignore[union-attr]  # matched above
    assert most >= 200
    assert len(generate(name, most, "test")) == most
    with pytest.raises(MechstudyError):
        generate(name, most + 1, "test")


@each_split
def test_agreement_is_rich_enough_for_a_thousand(split: str):
    assert len(generate("subject_verb_agreement", 1000, split)) == 1000


def test_a_tokenizer_that_cannot_tell_answers_apart_is_refused():
    with pytest.raises(MechstudyError, match="allows 0 at most") as error:
        BEHAVIOURS["antonym"].generate(lambda text: [ord(letter) for letter in text][:4], 5, "train", 0)
    assert "drafts" in error.value.facts["skipped"]


def test_an_encoding_that_adds_tokens_after_the_prompt_is_refused():
    encode = FakeTokenizer(bos=False)
    with pytest.raises(MechstudyError, match="adds tokens after the prompt"):
        BEHAVIOURS["antonym"].generate(lambda text: encode(f"user: {text} assistant:"), 5, "train", 0)


def test_a_class_that_runs_out_ends_the_balanced_sequence():
    def slots(split: str, rank: generator.Rank):
        for balance, words in (("a", ["one", "two", "three"]), ("b", ["four"])):
            for word in words:
                clean, corrupted = (generator.Rendered(f"Say {text}", {}) for text in (word, "zero"))
                draft = generator.Draft(clean, corrupted, " yes", " no")
                yield generator.Slot(balance, "say", word, word, word, lambda draft=draft: iter([draft]))

    family = generator.Behaviour("toy", "", ("last",), {}, {}, slots)
    encode = FakeTokenizer(bos=False)
    with pytest.raises(MechstudyError, match="3 at most"):
        family.generate(encode, 4)
    assert Counter(pair.clean == "Say four" for pair in family.generate(encode, 3)) == {False: 2, True: 1}


def test_an_unknown_split_names_the_nearest():
    with pytest.raises(MechstudyError, match="unknown split 'tests'") as error:
        generate("antonym", 5, "tests")
    assert error.value.fix == "split: test"


@pytest.mark.parametrize("n", [0, -3])
def test_fewer_than_one_prompt_is_refused(n: int):
    with pytest.raises(MechstudyError, match="at least 1"):
        generate("antonym", n)


def test_prompt_files_round_trip_with_line_separators_inside(tmp_path):
    pairs = [pair.model_copy(update={"group": "a\u2028b\u00e9"}) for pair in generate("antonym", 5)]
    path = tmp_path / "train.jsonl"
    path.write_text(to_jsonl(pairs), encoding="utf-8")
    assert from_jsonl(path) == pairs


def test_a_broken_prompt_file_names_its_line(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(to_jsonl(generate("antonym", 2)) + '{"id": "x"}\n', encoding="utf-8")
    with pytest.raises(MechstudyError, match=r"train\.jsonl:3: not a prompt pair"):
        from_jsonl(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean_tokens": (1, 2)}, "clean has 2 tokens"),
        ({"positions": {"word": 99}}, "position word=99 is outside"),
        ({"positions": {"word": -1}}, "position word=-1 is outside"),
        ({"wrong_tokens": (7,), "answer_tokens": (7, 8)}, "do not differ in their first token"),
        ({"answer_tokens": ()}, "do not differ in their first token"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_pair_that_cannot_be_contrasted_is_refused(change: dict, message: str):
    good = generate("antonym", 1)[0].canonical()
    assert PromptPair.model_validate(good).canonical() == good
    with pytest.raises(ValueError, match=message):
        PromptPair.model_validate(good | change)


@pytest.mark.process
def test_prompts_are_planned_without_importing_torch():
    code = "import sys, mechstudy.behaviours.registry, mechstudy.behaviours.user; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
