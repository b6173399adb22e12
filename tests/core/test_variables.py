"""Numbers in environment variables: those of a shell's profile may hold anything."""

from __future__ import annotations

import pytest

from mechstudy.core.errors import MechstudyError, first_sentence
from mechstudy.core.variables import whole_variable


@pytest.mark.parametrize(("text", "value"), [("3", 3), (" 12 ", 12), ("", 5), (None, 5)])
def test_a_whole_number_is_read_and_an_unset_variable_is_the_default(text, value):
    environment = {} if text is None else {"N": text}
    assert whole_variable(environment, "N", 5) == value


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "0"])
def test_anything_else_is_an_error_that_names_the_variable(text):
    with pytest.raises(MechstudyError, match=f"variable N is '{text}', not a whole number of at least 1") as error:
        whole_variable({"N": text}, "N", 5, least=1)
    assert "unset N" in str(error.value.fix)
    with pytest.raises(MechstudyError, match="variable N is not set"):
        whole_variable({}, "N")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("It failed here. Please report it: https://example.org"), "It failed here."),
        (ValueError("\n\n  on a later line  \nand more"), "on a later line"),
        (KeyError("silly"), "KeyError: 'silly'"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_another_librarys_error_is_quoted_by_its_first_sentence(error, said):
    assert first_sentence(error) == said


def test_a_long_sentence_is_cut_between_words_and_says_so():
    cut = first_sentence(ValueError("word " * 100))
    assert len(cut) <= 200 and cut.endswith("word ...")
