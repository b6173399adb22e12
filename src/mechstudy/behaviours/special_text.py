"""Prompts that bring what the encoding adds itself: a BOS token, or the markup of a chat."""

from __future__ import annotations

import re

from mechstudy.behaviours.tokenise import Tokens, Unsuitable

OWN_BOS, CHAT_MARKUP = "prompt with a BOS token of its own", "chat markup inside a chat"
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
