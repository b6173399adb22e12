"""Phase 3, once more: another dictionary of a layer, from the same rows, and how alike it is to the layer's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechstudy.machine.runtime import Runtime
from mechstudy.store.artifacts import Artifact, ArtifactWriter


def run(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """From a store: what `phases.train.run` writes, and ``agreement.json``."""
    from mechstudy.study.phases import train

    train.run(spec, inputs, out, runtime)
    _compare(inputs, out)


def take(spec: Mapping[str, Any], inputs: Mapping[str, Artifact], out: ArtifactWriter, runtime: Runtime) -> None:
    """Out of a streamed pass: what `phases.stream.take` writes, and ``agreement.json``."""
    from mechstudy.study.phases import stream

    stream.take(spec, inputs, out, runtime)
    _compare(inputs, out)


def _compare(inputs: Mapping[str, Artifact], out: ArtifactWriter) -> None:
    from mechstudy.dictionaries.dictionary import Dictionary
    from mechstudy.dictionaries.evaluation.stability import compare
    from mechstudy.study.phases.inputs import inputs_of

    [own] = inputs_of(inputs, "train").values()
    found = compare(Dictionary.load(own.path / "dictionary"), Dictionary.load(out.path / "dictionary"))
    out.write_json("agreement.json", found)
