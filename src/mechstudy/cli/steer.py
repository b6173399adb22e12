"""`steer`: a prompt's continuation with features steered, beside the one without."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from mechstudy import interventions
from mechstudy.cli import one_prompt
from mechstudy.cli.one_prompt import Stages, noted
from mechstudy.cli.options import Json
from mechstudy.cli.show import console, print_json, table
from mechstudy.core.errors import MechstudyError

_EXAMPLE = "--feature 13/741 --by 8"


def steer(
    prompt: one_prompt.Prompt,
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", "-f", metavar="LAYER/FEATURE", help="What is steered, each one by --by; repeatable."),
    ] = None,
    by: Annotated[float | None, typer.Option(help="The activation added to it; a negative one suppresses it.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="LAYER/FEATURE=VALUE", help="The same with a value of its own; repeatable."),
    ] = None,
    model: one_prompt.ModelSource = None,
    dictionaries: one_prompt.Dictionaries = None,
    basis: one_prompt.Basis = None,
    tokens: Annotated[int, typer.Option(min=1, help="New tokens, at most.")] = 40,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most probable token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws, with a temperature.")] = 0,
    instruction: one_prompt.Instruction = None,
    device: one_prompt.Device = "auto",
    as_json: Json = False,
) -> None:
    """Steer features while the model continues a prompt, and show both texts side by side.

    Adds the value times the feature's decoder row at every token but the first. Without dictionaries the numbers name
    neurons, to whose activations the value is added.

    [dim]mechstudy steer "I think that" --feature 13/1741 --by 8 --dictionaries runs/demo[/]
    [dim]mechstudy steer "I think that" --set 13/741=8 --set 20/15=-4[/]
    """
    one_prompt.check_prompts(prompt)
    strengths = _strengths(feature or [], by, sets or [])
    kind = one_prompt.basis_of(basis, dictionaries)
    stages = Stages()
    with noted():
        opened = one_prompt.opened(model, dictionaries, device, lazy=True)
        stages.done("model")
        steered, unsteered = (
            interventions.generate(
                opened.model,
                prompt,
                steer=chosen,
                dictionaries=opened.dictionaries,
                basis=kind,
                max_new_tokens=tokens,
                temperature=temperature,
                seed=seed,
                instruction=instruction,
            )
            for chosen in (strengths, None)  # a feature that is not there is found first
        )
        stages.done("text")
    if as_json:
        facts = {"model": opened.model.name, "prompt": prompt, "steer": strengths}
        print_json({**facts, "unsteered": unsteered, "steered": steered})
        return
    named = ", ".join(f"{name} {value:+g}" for name, value in strengths.items())
    texts = table("~unsteered", f"~steered: {named}")
    texts.add_row(*(Text.assemble((prompt, "dim"), text) for text in (unsteered, steered)))
    console().print(texts)
    if steered == unsteered:
        print("the text is the same: try a larger value")
    print(f"{opened.model.name}; time: {stages}")


def _strengths(features: list[str], by: float | None, sets: list[str]) -> dict[str | tuple[int, int], float]:
    """Each feature's value.

    Raises:
        MechstudyError: features without a value or a value without features, a value that is no number, a feature
            twice, or none.
    """
    if bool(features) != (by is not None):
        what = "--feature needs --by" if features else "--by needs --feature"
        raise MechstudyError(f"{what}, what is added to its activation", fix=_EXAMPLE)
    pairs = [(name, by or 0.0) for name in features]
    for text in sets:
        name, _, value = text.partition("=")
        try:
            pairs.append((name.strip(), float(value)))
        except ValueError:
            raise MechstudyError(
                f"{text!r} is not of the form LAYER/FEATURE=VALUE", where="--set", fix="--set 13/741=8"
            ) from None
    if not pairs:
        raise MechstudyError("nothing is steered", fix=f"{_EXAMPLE}, or --set 13/741=8")
    for name, _ in pairs:
        interventions.feature_at(name)  # before a model is loaded
    strengths: dict[str | tuple[int, int], float] = dict(pairs)
    if len(strengths) < len(pairs):
        twice = next(name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1)
        raise MechstudyError(f"{twice} is given twice", fix="one value for each feature")
    return strengths
