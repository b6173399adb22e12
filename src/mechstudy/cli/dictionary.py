"""`mechstudy dictionary`: what a dictionary's files hold, how alike two are, and the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mechstudy.cli.options import Json, guarded

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Place = Annotated[str, typer.Argument(help="A folder or file, or hf:owner/name/folder@revision.")]


@app.callback()
def dictionary() -> None:
    """Show dictionaries of mechstudy, SAELens, sparsify, dictionary_learning, circuit-tracer; push and pull them."""


@app.command()
@guarded
def show(place: Place, as_json: Json = False) -> None:
    """Show what a path holds: architecture, widths, k, site, metrics. A set's dictionaries one below the other.

    [dim]mechstudy dictionary show runs/demo/artifacts/train/15-*/dictionary[/]
    """
    from mechstudy.cli.show import console, print_json
    from mechstudy.dictionaries.formats.describe import describe

    found = describe(place)
    if as_json:
        print_json(found)
        return
    out = console()
    for entry in found:
        widths = f"{entry['d_in']:,} -> {entry['d_sae']:,} -> {entry['d_out']:,}"
        sites = dict.fromkeys((entry["site_in"], entry["site_out"]))
        lines = {
            entry["place"]: "",
            "  format": " ".join(filter(None, (entry["format"], entry["architecture"]))),
            "  what": f"{entry['kind']}, {entry['activation']}",
            "  widths": f"{widths}, {entry['dtype']}",
            "  k": "" if entry["k"] is None else f"{entry['k']:,}",
            "  site": " -> ".join(sites),
            "  model": entry["model"] or "",
            **{f"  {name}": f"{value:.4g}" for name, value in entry["metrics"].items()},
        }
        for name, text in lines.items():
            if text or not name.startswith("  "):
                out.print(f"{name:<12} {text}".rstrip(), markup=False)


@app.command()
@guarded
def push(
    folder: Annotated[Path, typer.Argument(help="The dictionary: anything that `show` shows.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; made where it does not exist.")],
    path_in_repo: Annotated[str, typer.Option(help="Its folder in the repository.")] = "",
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a repository that is made now.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch; made where it does not exist.")] = None,
    overwrite_card: Annotated[bool, typer.Option(help="Also where there is a README.md already.")] = False,
) -> None:
    """Put a dictionary and its model card on the Hugging Face hub. The account is `hf auth login`'s, or HF_TOKEN's.

    [dim]mechstudy dictionary push my-sae me/my-saes --path-in-repo layer_15 --private[/]
    """
    from mechstudy.dictionaries.dictionary import Dictionary
    from mechstudy.dictionaries.formats.describe import metrics_of

    address = Dictionary.load(folder).push(
        repo, path_in_repo=path_in_repo, private=private, revision=revision, metrics=metrics_of(folder),
        overwrite_card=overwrite_card,
    )  # fmt: skip
    print(address)


@app.command()
@guarded
def pull(
    place: Annotated[str, typer.Argument(help="hf:owner/name/folder@revision.")],
    to: Annotated[Path | None, typer.Option(help="Save it here, in SAELens' format. Default: the hub's cache.")] = None,
) -> None:
    """Fetch a dictionary from the Hugging Face hub and print its folder. Pickles and code stay there.

    [dim]mechstudy dictionary pull hf:me/my-saes/layer_15 --to my-sae[/]
    """
    from mechstudy.core.errors import MechstudyError
    from mechstudy.dictionaries.dictionary import Dictionary
    from mechstudy.dictionaries.formats import hub

    if not hub.is_hub(place):
        raise MechstudyError(f"{place!r} is not on the hub", fix=f"{hub.PREFIX}{place}")
    if to is not None and to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise MechstudyError("there is something already", where=str(to), fix="a new folder, or an empty one")
    if to is None:
        print(hub.pull(place))
        return
    Dictionary.load(place).save(to)
    print(to)


@app.command()
@guarded
def compare(
    dictionaries: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C ...]",
            help=r"Folders, files or hf:owner/name\[/folder]\[@revision], in any format `Dictionary.load` reads.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """How alike the features of two dictionaries are; of several, every pair.

    For decoder and encoder directions: nearest is the mean |cosine| with the best match in the other dictionary,
    matched that of the best one-to-one matching, > .7 and > .9 shares of matched pairs, chance what random directions
    reach.
    Seeds of one recipe on the same rows share only part of their features.

    [dim]mechstudy dictionary compare seed-0 seed-1 seed-2[/]
    """
    from mechstudy.cli.show import console, print_json
    from mechstudy.core.errors import MechstudyError
    from mechstudy.dictionaries.dictionary import Dictionary
    from mechstudy.dictionaries.evaluation.stability import between

    if len(dictionaries) < 2:
        raise MechstudyError("one dictionary leaves nothing to compare", fix="name a second one")
    if repeated := [name for name in dictionaries if dictionaries.count(name) > 1]:
        raise MechstudyError(f"{repeated[0]} is named twice")
    found = between({name: Dictionary.load(name) for name in dictionaries})
    if as_json:
        print_json(found)
        return
    out = console()
    for pair in found["pairs"]:
        out.print(f"{pair['a']} - {pair['b']}", markup=False)
        if pair["sites"][0] != pair["sites"][1]:
            out.print(f"  other sites: {' and '.join(pair['sites'])}", markup=False)
        for part in ("decoder", "encoder"):
            out.print(f"  {_pair_line(part, pair[part])}")
    if len(found["pairs"]) > 1:
        out.print(f"mean of {len(found['pairs'])} pairs")
        for line in agreement_lines(found["mean"]):
            out.print(f"  {line}")


def agreement_lines(mean: Mapping[str, Any]) -> list[str]:
    """One line for decoder and encoder each, of `stability.between`'s mean."""
    return [
        _line(part, mean[part]["nearest"], mean[part]["matched"], mean[part]["above"], mean[part]["chance"])
        for part in ("decoder", "encoder")
    ]


def _pair_line(part: str, found: Mapping[str, Any]) -> str:
    nearest = (found["nearest_a"]["mean"] + found["nearest_b"]["mean"]) / 2
    matched = found["matched"]
    note = "" if matched["exact"] else " (at least)"
    return _line(part, nearest, matched["mean"], matched["above"], found["chance"]) + note


def _line(part: str, nearest: float, matched: float, above: Mapping[str, float], chance: float) -> str:
    shares = "  ".join(f"> {bound.lstrip('0')} {share:.1%}" for bound, share in above.items())
    return f"{part}  nearest {nearest:.3f}  matched {matched:.3f}  {shares}  chance {chance:.3f}"
