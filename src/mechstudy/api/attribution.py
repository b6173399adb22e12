"""From the text of a prompt to a graph that draws itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from mechstudy.api.graphs import PromptGraph
from mechstudy.behaviours.schema import AnswerSets, PromptPair
from mechstudy.circuits.config import AttributionConfig
from mechstudy.circuits.costs import graph_cost
from mechstudy.circuits.custom_targets import LogitFunction
from mechstudy.circuits.prompt_graph import explain_question
from mechstudy.circuits.question import Question
from mechstudy.core.errors import MechstudyError
from mechstudy.core.notices import warn
from mechstudy.core.progress import Progress
from mechstudy.core.sizes import human
from mechstudy.dictionaries.fitted import all_fitted
from mechstudy.dictionaries.neurons import Basis
from mechstudy.machine.memory import available_memory_bytes
from mechstudy.models.context import context_length
from mechstudy.models.known import same_model
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.shapes import shapes_of

_LONG = 128  # tokens from which a graph takes a minute or more on a CPU
_TYPICAL_K = 64  # active features, of dictionaries that do not say


def attribute(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis] | None,
    prompt: str | PromptPair,
    *,
    answer: str | Sequence[str] | None = None,
    wrong_answer: str | Sequence[str] | None = None,
    answer_sets: AnswerSets = "logsumexp",
    answer_tokens: Literal["first", "all"] = "first",
    corrupted: str | None = None,
    explains: Literal["clean", "difference"] | None = None,
    target: Tensor | LogitFunction | None = None,
    position: int | str = "last",
    instruction: str | None = None,
    config: AttributionConfig | None = None,
    progress: Progress | None = None,
) -> PromptGraph:
    """The attribution graph of one prompt: which features, through which others, make the model's answer.

        graph = ms.attribute(model, dicts, "The keys to the cabinet", answer=" are", wrong_answer=" is")
        graph = ms.attribute(model, dicts, "The capital of France is")  # explains the top outputs
        graph = ms.attribute(model, dicts, "The capital of France is", target=lambda z: z[11] - z.logsumexp(0))
        graph = ms.attribute(
            model, dicts, "The keys to the cabinet", answer=" are", wrong_answer=" is",
            corrupted="The key to the cabinet", explains="difference",
        )

    Args:
        model: in float32 or wider.
        dictionaries: transcoders or SAEs by layer; a layer without one enters as errors, unless ``config`` has a
            ``basis`` (``mixed``: its neurons). None takes the neurons of every layer's MLP.
        prompt: text; or a prompt pair, whose clean prompt and answers are used.
        answer: the answer as it follows the prompt, with its leading space: one token. Several as a list.
        wrong_answer: the one to compare it with, or several. With both, logit(answer) - logit(wrong_answer) is
            explained; without, the top outputs.
        answer_sets: how the logits of several answers are combined: ``logsumexp``, explained to first order (the
            weights within a set are those of this prompt), or their ``mean``.
        answer_tokens: ``all`` explains the log-probabilities of the right answer's tokens, teacher-forced, against the
            wrong answer's up to where the two part (`circuits.AnswerTokens`), with a ledger for each token.
        corrupted: another prompt as text, for effects of replacing features by their activation there, and for
            differences. Pairs have their own.
        explains: ``difference`` explains the target's value in the prompt minus that in the corrupted one, which must
            have as many tokens: what both have in common drops out. The default is that of ``config``: ``clean``.
        target: something else to explain instead: a direction of the final normed residual, [d_model], exactly; or a
            function of the model's logits [vocabulary] that returns a scalar tensor, to first order at this prompt,
            with a constant that makes its value exact.
        position: where ``target`` is read: ``last``, a token's index, or a position that the pair names.
        instruction: the user's turn of the model's chat template, which the prompt then begins to answer.
        config: the number of features with a row of their own, and the thresholds of pruning.
        progress: receives messages.

    Raises:
        MechstudyError: a prompt or an answer that is no text; an empty prompt, or one beyond the model's learned
            positions (a warning where the model is rotary); one answer without the other; an answer of several tokens
            (unless ``answer_tokens`` is ``all``), or one that the tokenizer merges with the prompt; an answer both
            right and wrong; a target of another shape or kind, or beside answers; dictionaries of a site
            that no node stands for.
    """
    _check_arguments(prompt, answer, wrong_answer, corrupted)
    if target is not None and (answer is not None or wrong_answer is not None):
        raise MechstudyError("both answers and a target are to be explained", fix="one of them")
    if target is not None:
        question = Question.of_target(model, prompt, target, position, instruction=instruction)
    elif isinstance(prompt, PromptPair):
        question = Question.of_pair(prompt)
    else:
        question = Question.of_text(
            model,
            prompt,
            answer,
            wrong_answer,
            answer_sets=answer_sets,
            answer_tokens=answer_tokens,
            instruction=instruction,
        )
    if corrupted is not None:
        question = question.against(model, corrupted, instruction)
    config = config or AttributionConfig()
    config = config if explains is None else AttributionConfig(**(config.model_dump() | {"explains": explains}))
    return _graph(model, dictionaries, question, config, progress)


def _graph(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis] | None,
    question: Question,
    config: AttributionConfig,
    progress: Progress | None,
) -> PromptGraph:
    dictionaries = all_fitted(model, {} if dictionaries is None else dictionaries)
    _check_length(model, len(question.tokens))
    _check_memory(model, dictionaries, config, len(question.tokens))
    made_for = {str(one.cfg.metadata.get("model_name") or model.name) for one in dictionaries.values()}
    if others := sorted(name for name in made_for if not same_model(name, model.name)):
        warn(f"the dictionaries were made for {', '.join(others)}, by their own files, and this model is {model.name}")
    return PromptGraph(*explain_question(model, dictionaries, question, config, progress=progress))


def _check_arguments(prompt: object, answer: object, wrong_answer: object, corrupted: object) -> None:
    if not isinstance(prompt, str | PromptPair):
        raise MechstudyError(
            f"the prompt is a {type(prompt).__name__}", fix='a text such as "The keys to the cabinet", or a prompt pair'
        )
    if corrupted is not None and isinstance(prompt, PromptPair):
        raise MechstudyError("a prompt pair has its own corrupted prompt", fix="corrupted=..., with the prompt as text")
    for name, given in (("answer", answer), ("wrong_answer", wrong_answer)):
        texts = [given] if isinstance(given, str) or not isinstance(given, Sequence) else given
        if wrong := [text for text in texts if text is not None and not isinstance(text, str)]:
            raise MechstudyError(f"{name} is a {type(wrong[0]).__name__}", fix=f'{name}=" are", or a list of texts')


def _check_length(model: LanguageModel, n_tokens: int) -> None:
    """Refuses a prompt beyond learned positions; warns of one beyond those that a rotary model was trained on."""
    context = context_length(model.hf.config.to_dict())
    if context is None or n_tokens <= context.n:
        return
    if context.learned:
        raise MechstudyError(context.exceeded(n_tokens), fix=f"a prompt of at most {context.n} tokens")
    warn(f"the prompt has {context.exceeded(n_tokens)}, and was not trained on more")


def _check_memory(
    model: LanguageModel, dictionaries: Mapping[int, Basis], config: AttributionConfig, n_tokens: int
) -> None:
    """Refuses a prompt whose graph a CPU's machine cannot hold; warns of one that may take minutes there."""
    if model.device.type != "cpu":
        return
    cfgs = [one.cfg for one in dictionaries.values()]
    basis = config.basis or ("dictionaries" if cfgs else "neurons")
    cost = graph_cost(
        shapes_of(model.hf.config.to_dict()),
        n_layers=len(cfgs),
        d_in=max((cfg.d_in for cfg in cfgs), default=0),
        n_features=max((cfg.d_sae for cfg in cfgs), default=0),
        k=max((getattr(cfg, "k", None) or _TYPICAL_K for cfg in cfgs), default=0),
        with_skip=False,
        max_features=config.max_features,
        tokens=n_tokens,
        neurons=0 if basis == "dictionaries" else config.n_neurons,
    )
    available = available_memory_bytes()
    what = f"a graph of {n_tokens:,} tokens"
    if cost.memory > available:
        raise MechstudyError(
            f"{what} needs more than {human(cost.memory)} of memory, and {human(available)} are free",
            fix="a shorter prompt, or fewer nodes: config=AttributionConfig(max_features=...)",
        )
    if n_tokens > _LONG:
        least = human(cost.memory)
        warn(f"{what} may take minutes, and takes more than {least}; both grow with the square of the length")
