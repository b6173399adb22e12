"""Prompts that bring what the encoding adds itself, a BOS token or the markup of a chat; or another model's BOS."""

from __future__ import annotations

import re

from mechstudy.behaviours.tokenise import Tokens, Unsuitable

OWN_BOS, CHAT_MARKUP = "prompt with a BOS token of its own", "chat markup inside a chat"
FOREIGN = "special token of another model"
# How texts of the common tokenizers begin; a model that has not this token reads it as several pieces of text.
_FIRST = re.compile(r"</?s>|<bos>|<BOS>|\[CLS\]|\[BOS\]|\[gMASK\]|<[|\uff5c][^<>\s]{1,40}[|\uff5c]>")
# How chat templates mark turns: <|im_start|> (DeepSeek: with fullwidth bars), <start_of_turn>, [INST], <<SYS>>,
# ### Instruction:, USER:
_MARKUP = re.compile(
    "<[|\uff5c]"
    r"[^<>\s]{1,40}"
    "[|\uff5c]>"
    r"|</?[A-Za-z_]{1,30}>|<</?[A-Z]{2,12}>>|\[/?[A-Z_]{2,20}\]"
    r"|^#{2,4} ?[A-Z]\w+:?|^(?:USER|ASSISTANT|SYSTEM|User|Assistant|System|Human):",
    re.MULTILINE,
)


class Opening:
    """The tokens that an encoding puts before every text: none, a BOS token, or a chat up to the reply."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._opening = tokens("")

    def check(self, name: str, text: str) -> None:
        """Checks that a prompt does not bring a part of it.

        Args:
            name: of the prompt, for the error.

        Raises:
            Unsuitable: it does.
        """
        text = text.lstrip()  # white space before a BOS token makes it no better
        first = _FIRST.match(text)
        if first is not None and not self._is_token(first[0]):
            raise Unsuitable(
                FOREIGN,
                f"{name} begins with {first[0]!r}, which is no token of this model",
                "leave it out: the model would read it as text",
            )
        if not self._opening:
            return
        if self._own(text)[:1] == self._opening[:1]:
            begun = _MARKUP.match(text)
            raise Unsuitable(
                OWN_BOS,
                f"{name} begins with {begun[0] if begun else text[:12]!r}, which the encoding adds itself",
                "leave it out: the prompt would begin with it twice",
            )
        if len(self._opening) > 1:
            for markup in dict.fromkeys(_MARKUP.findall(text)):
                if self._opens_with(markup):
                    raise Unsuitable(
                        CHAT_MARKUP,
                        f"{name} holds {markup!r}, which the chat template writes too",
                        "the prompt without the markup of the chat, or model.chat: false",
                    )

    def _is_token(self, text: str) -> bool:
        """Whether a text is one token: written twice, it has one more. Some tokenizers put a space before the first."""
        return len(self._tokens(2 * text)) - len(self._tokens(text)) == 1

    def _own(self, text: str) -> tuple[int, ...]:
        """The tokens of a text without those before it; all of them where they merge."""
        ids, n = self._tokens(text), len(self._opening)
        return ids[n:] if ids[:n] == self._opening else ids

    def _opens_with(self, markup: str) -> bool:
        """Whether the tokens of the markup are, in this order, among those before every text."""
        own, opening = self._own(markup), self._opening
        if not own or own == self._tokens(markup):
            return False
        return any(opening[i : i + len(own)] == own for i in range(len(opening) - len(own) + 1))
