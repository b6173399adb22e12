"""A small transformer that is trained to put a word into a form, through two heads and an MLP that are given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product
from typing import Any

import torch
import transformers
from numpy.random import Generator

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.components import Components
from mechstudy.circuits.named_positions import AlignedPrompt, NamedPositions
from mechstudy.circuits.node_names import position_names
from mechstudy.core.errors import MechstudyError
from mechstudy.core.seeds import seed_for, torch_generator
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.loading import load_model
from mechstudy.referee.drafts import Draft, drawn_pairs, shuffled
from mechstudy.referee.interchange import Batch, CausalProgram, StrictInterchange, Training, Variable, train
from mechstudy.referee.known_circuit import EdgeAt, KnownCircuit
from mechstudy.referee.words import numbered_words, word_tokenizer

NAME = "inflection"
STEMS, FORMS, FILLERS, END = range(1, 6), range(6, 9), range(9, 17), 17
ANSWERS = range(18, 18 + len(STEMS) * len(FORMS))  # one for each stem and form
WORDS = numbered_words(ANSWERS.stop)
TOLERANCE = 1e-2  # of the effect of all nodes: training leaves .001 to .005 by seed, and true nodes change .4
N_LAYERS, N_HEADS, D_MODEL = 6, 4, 64  # as InterpBench's models
PROGRAM = CausalProgram(
    (
        Variable("stem", ("stem_word",), lambda word: word - STEMS.start, ("head.1.0@last",)),
        Variable("form", ("form_word",), lambda word: word - FORMS.start, ("head.2.1@last",)),
        Variable(
            "answer",
            ("stem", "form"),
            lambda stem, form: ANSWERS.start + len(FORMS) * stem + form,
            ("mlp.4@last",),
        ),
    )
)


def inflection(seed: int = 0, how: Training | None = None) -> KnownCircuit:
    """``.. stem .. form .. end``, in any order: the word of this stem in this form.

    A head in layer 1 holds the stem, one in layer 2 the form, and the MLP of layer 4 the answer, by strict interchange
    training. Prompts of the pairs are left out of training.

    Args:
        seed: of initial weights, batches, swaps and pairs.
        how: steps and so on of training.

    Raises:
        MechstudyError: training fails.
    """
    model = _untrained(seed)
    pairs = {split: drawn_pairs(NAME, split, WORDS, seed, _draw) for split in ("train", "test")}
    every = (*pairs["train"], *pairs["test"])
    positions = NamedPositions.of(every)
    components = Components(model, positions)
    setup = StrictInterchange(model, components, PROGRAM, torch.tensor(ANSWERS))
    losses = train(setup, training_prompts(positions, every), torch_generator(seed, NAME, "training"), how)
    if not max(losses.behaviour, losses.interchange) < 0.1:
        raise MechstudyError(f"{NAME} was not learned", facts={"losses": str(losses)}, fix="another seed")
    model.hf.double()  # as other known circuits, so that roundings are no effects
    return KnownCircuit(
        NAME,
        "a head that finds a stem, a head that finds a form, and an MLP that combines them, all trained",
        model,
        components,
        (frozenset(PROGRAM.nodes),),
        pairs["train"],
        pairs["test"],
        frozenset(
            EdgeAt(*edge, "last") for edge in (("head.1.0", "mlp.4"), ("head.2.1", "mlp.4"), ("mlp.4", "logits"))
        ),
        tolerance=TOLERANCE,
    )


def _untrained(seed: int) -> LanguageModel:
    config = transformers.GPT2Config(
        vocab_size=len(WORDS),
        n_positions=8,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_inner=2 * D_MODEL,
        activation_function="relu",
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, NAME, "weights"))
        hf: Any = transformers.GPT2LMHeadModel(config)
    return load_model(hf, word_tokenizer(WORDS), name=NAME)


def training_prompts(positions: NamedPositions, leave_out: Sequence[PromptPair]) -> Batch:
    """All prompts but those of some pairs."""
    unseen = {tokens for pair in leave_out for tokens in (pair.clean_tokens, pair.corrupted_tokens)}
    rows: list[AlignedPrompt] = []
    inputs: list[tuple[int, int]] = []
    for stem, form, filler in product(STEMS, FORMS, FILLERS):
        for order in permutations((stem, form, filler)):
            tokens = (0, *order, END)
            if tokens not in unseen:
                rows.append(AlignedPrompt("", tokens, tuple(position_names(_places(tokens, stem, form), len(tokens)))))
                inputs.append((stem, form))
    stem_B, form_B = torch.tensor(inputs).T
    tokens_BT = torch.tensor([row.tokens for row in rows])
    return Batch(tokens_BT, positions.numbers(rows), {"stem_word": stem_B, "form_word": form_B})


def _draw(rng: Generator) -> Draft:
    """A pair of prompts with other stems and other forms."""
    stem, other_stem, *_ = shuffled(rng, STEMS)
    form, other_form, *_ = shuffled(rng, FORMS)
    clean = [0, *shuffled(rng, (stem, form, int(rng.choice(FILLERS)))), END]
    corrupted = [{stem: other_stem, form: other_form}.get(word, word) for word in clean]
    inputs = torch.tensor([[stem, other_stem], [form, other_form]])
    right, wrong = PROGRAM.values({"stem_word": inputs[0], "form_word": inputs[1]})["answer"].tolist()
    return Draft(clean, corrupted, (right, wrong), _places(clean, stem, form))


def _places(tokens: Sequence[int], stem: int, form: int) -> dict[str, int]:
    return {"stem": tokens.index(stem), "form": tokens.index(form), "last": len(tokens) - 1}
