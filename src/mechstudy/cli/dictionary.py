"""`dictionary` shows, compares and exchanges dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mechstudy import dictionaries
from mechstudy.cli.options import Json, guarded
from mechstudy.cli.show import console, print_json
from mechstudy.core.errors import MechstudyError

dictionary = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    help="Show, compare, push and pull dictionaries, in the formats of SAELens, sparsify, circuit-tracer and others.",
)

ASSUMED = " (assumed: neither the file nor its folders name the site)"
Place = Annotated[str, typer.Argument(help="A folder or file, or hf:owner/name/folder@revision.")]


@dictionary.command()
@guarded
def show(place: Place, as_json: Json = False) -> None:
    """Show a dictionary's architecture, widths, k, site and metrics; of a set, one dictionary below the other.

    [dim]mechstudy dictionary show runs/demo/artifacts/train/15-*/dictionary[/]
    """
    described = dictionaries.describe(place)
    if as_json:
        print_json(described)
        return
    out = console()
    for entry in described:
        widths = f"{entry['d_in']:,} -> {entry['d_sae']:,} -> {entry['d_out']:,}"
        sites = dict.fromkeys((entry["site_in"], entry["site_out"]))
        lines = {
            entry["place"]: "",
            "  format": " ".join(filter(None, (entry["format"], entry["architecture"]))),
            "  what": f"{entry['kind']}, {entry['activation']}",
            "  widths": f"{widths}, {entry['dtype']}",
            "  k": "" if entry["k"] is None else f"{entry['k']:,}",
            "  site": " -> ".join(sites) + ASSUMED * bool(entry.get("site_assumed")),
            "  output of": entry["hookpoint"] or "",
            "  model": entry["model"] or "",
            **{f"  {name}": f"{value:.4g}" for name, value in entry["metrics"].items()},
        }
        for name, text in lines.items():
            if text or not name.startswith("  "):
                out.print(f"{name:<12} {text}".rstrip(), markup=False)


@dictionary.command()
@guarded
def push(
    folder: Annotated[Path, typer.Argument(help="The dictionary, in any format that `show` reads.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; created if it does not exist.")],
    path_in_repo: Annotated[str, typer.Option(help="Its folder in the repository.")] = "",
    private: Annotated[bool | None, typer.Option("--private/--public", help="Visibility of a new repository.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch; created if it does not exist.")] = None,
    overwrite_card: Annotated[bool, typer.Option(help="Replace an existing README.md.")] = False,
) -> None:
    """Upload a dictionary and its model card to the Hugging Face hub, with the account of `hf auth login` or HF_TOKEN.

    [dim]mechstudy dictionary push my-sae me/my-saes --path-in-repo layer_15 --private[/]
    """
    address = dictionaries.Dictionary.load(folder).push(
        repo,
        path_in_repo=path_in_repo,
        private=private,
        revision=revision,
        metrics=dictionaries.metrics_of(folder),
        overwrite_card=overwrite_card,
    )
    print(address)


@dictionary.command()
@guarded
def pull(
    place: Annotated[str, typer.Argument(help="hf:owner/name/folder@revision.")],
    to: Annotated[
        Path | None, typer.Option(help="A folder to save it in, in SAELens' format. Default: the hub's cache.")
    ] = None,
) -> None:
    """Fetch a dictionary from the Hugging Face hub and print its folder. Pickles and code are not fetched.

    [dim]mechstudy dictionary pull hf:me/my-saes/layer_15 --to my-sae[/]
    """
    if not dictionaries.is_hub(place):
        raise MechstudyError(f"{place!r} is not on the hub", fix=f"hf:{place}")
    if to is not None and to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise MechstudyError("the folder is not empty", where=str(to), fix="a new folder, or an empty one")
    if to is None:
        print(dictionaries.pull(place))
        return
    dictionaries.Dictionary.load(place).save(to)
    print(to)


@dictionary.command()
@guarded
def compare(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C ...]",
            help=r"Folders, files or hf:owner/name\[/folder]\[@revision], in any format `Dictionary.load` reads.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Measure how alike the features of two dictionaries are; of several, every pair.

    For decoder and encoder directions: nearest is the mean |cosine| with the best match in the other dictionary,
    matched that of the best one-to-one matching, > .7 and > .9 shares of matched pairs, chance the value for random
    directions.
    Seeds of one recipe on the same rows share only part of their features.

    [dim]mechstudy dictionary compare seed-0 seed-1 seed-2[/]
    """
    if len(places) < 2:
        raise MechstudyError("one dictionary leaves nothing to compare", fix="name a second one")
    if repeated := [name for name in places if places.count(name) > 1]:
        raise MechstudyError(f"{repeated[0]} is named twice")
    comparison = dictionaries.compare_all({name: dictionaries.Dictionary.load(name) for name in places})
    if as_json:
        print_json(comparison)
        return
    out = console()
    for pair in comparison["pairs"]:
        out.print(f"{pair['a']} - {pair['b']}", markup=False)
        if pair["sites"][0] != pair["sites"][1]:
            out.print(f"  other sites: {' and '.join(pair['sites'])}", markup=False)
        for part in ("decoder", "encoder"):
            out.print(f"  {_pair_line(part, pair[part])}")
    if len(comparison["pairs"]) > 1:
        out.print(f"mean of {len(comparison['pairs'])} pairs")
        for line in agreement_lines(comparison["mean"]):
            out.print(f"  {line}")


def agreement_lines(mean: Mapping[str, Any]) -> list[str]:
    """A line for the decoder and one for the encoder, from `stability.compare_all`'s mean."""
    return [
        _line(part, mean[part]["nearest"], mean[part]["matched"], mean[part]["above"], mean[part]["chance"])
        for part in ("decoder", "encoder")
    ]


def _pair_line(part: str, scores: Mapping[str, Any]) -> str:
    nearest = (scores["nearest_a"]["mean"] + scores["nearest_b"]["mean"]) / 2
    matched = scores["matched"]
    note = "" if matched["exact"] else " (at least)"
    return _line(part, nearest, matched["mean"], matched["above"], scores["chance"]) + note


def _line(part: str, nearest: float, matched: float, above: Mapping[str, float], chance: float) -> str:
    shares = "  ".join(f"> {bound.lstrip('0')} {share:.1%}" for bound, share in above.items())
    return f"{part}  nearest {nearest:.3f}  matched {matched:.3f}  {shares}  chance {chance:.3f}"
