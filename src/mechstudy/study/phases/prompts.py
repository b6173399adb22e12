"""Phase 0: contrastive prompt pairs of one behaviour, tokenised for the model at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactWriter


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Writes ``train.jsonl``, ``test.jsonl``, ``tokens.json`` (id -> text) and ``summary.json``."""
    from mechstudy.behaviours.registry import behaviour
    from mechstudy.behaviours.schema import SPLITS, to_jsonl
    from mechstudy.behaviours.user import joined_words, load_jsonl
    from mechstudy.study.phases.inputs import loaded_model

    model = loaded_model(inputs["model"], runtime)
    encode = partial(model.encode, instruction=inputs["model"].manifest["spec"].get("chat_instruction"))
    name = spec["behaviour"]
    if spec.get("file"):
        given = load_jsonl(runtime.base / spec["file"], encode)
        pairs = {split: given.get(split, [])[: spec["n"][split]] for split in SPLITS}
        description = f"prompts from {spec['file']}"
        for split in SPLITS:
            if not pairs[split]:
                raise MechstudyError(
                    f"{name}: no {split} prompts", where=spec["file"], fix=f'give some lines "split": "{split}"'
                )
    else:
        family = behaviour(name)
        pairs = {split: family.generate(encode, spec["n"][split], split, spec["seed"]) for split in SPLITS}
        description = family.description
    everything = [pair for split in SPLITS for pair in pairs[split]]
    if spec.get("file") and (joined := joined_words(everything)):
        first = joined[0]
        runtime.progress.log(
            f"{len(joined)} of {len(everything)} answers go on with the prompt's last word, as in"
            f" {first.clean.split()[-1] + '|' + first.answer!r} ({first.id}): give them a leading space"
            " unless that is meant"
        )
    for split in SPLITS:
        out.write_text(f"{split}.jsonl", to_jsonl(pairs[split]))
    used = sorted({t for pair in everything for t in (*pair.clean_tokens, *pair.corrupted_tokens)})
    out.write_json("tokens.json", dict(zip(map(str, used), model.token_strings(used), strict=True)), indent=None)
    out.write_json(
        "summary.json",
        {
            "behaviour": name,
            "description": description,
            "n": {split: len(pairs[split]) for split in SPLITS},
            "positions": positions_in_order(everything),
            "n_templates": len({pair.template for pair in everything}),
            "token_lengths": dict(sorted(Counter(len(pair.clean_tokens) for pair in everything).items())),
        },
    )


def positions_in_order(pairs) -> list[str]:
    """The named positions from left to right, by their mean index."""
    totals: dict[str, list[int]] = {}
    for pair in pairs:
        for name, index in pair.positions.items():
            totals.setdefault(name, []).append(index)
    return sorted(totals, key=lambda name: sum(totals[name]) / len(totals[name]))
