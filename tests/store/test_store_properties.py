"""Properties of ids, canonical JSON, and the store's verification."""

import json
import random
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechstudy.core.jsonio import canonical_json
from mechstudy.store.artifacts import ArtifactStore, artifact_id

finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers() | st.text() | finite
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
specs = st.dictionaries(st.text(), values, max_size=5)
inputs = st.dictionaries(st.text(max_size=5), st.text("0123456789abcdef", min_size=8, max_size=8), max_size=3)


def shuffled(value, rng):
    """The same value, its mappings in another order and its lists as tuples."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    if isinstance(value, list):
        return tuple(shuffled(item, rng) for item in value)
    return value


@settings(deadline=None)
@given(specs, inputs, st.integers(0, 99))
def test_key_order_and_tuple_or_list_do_not_change_an_id(spec, ids, seed):
    rng = random.Random(seed)
    assert artifact_id("p", 1, shuffled(spec, rng), shuffled(ids, rng)) == artifact_id("p", 1, spec, ids)


identities = st.tuples(st.sampled_from(["a", "b", "ab"]), st.integers(1, 3), specs, inputs)


@settings(deadline=None)
@given(identities, identities)
def test_ids_are_equal_exactly_when_phase_version_spec_and_inputs_are(first, second):
    same = canonical_json(first) == canonical_json(second)
    assert (artifact_id(*first) == artifact_id(*second)) == same


@settings(deadline=None)
@given(identities, st.integers(0, 3), st.data())
def test_changing_any_one_part_changes_the_id(identity, part, data):
    other = data.draw(
        [st.text(), st.integers(), specs, inputs][part].filter(
            lambda new: canonical_json(new) != canonical_json(identity[part])
        )
    )
    changed = (*identity[:part], other, *identity[part + 1 :])
    assert artifact_id(*changed) != artifact_id(*identity)


def test_infinity_nan_null_and_each_other_have_different_ids():
    odd = [float("inf"), float("-inf"), float("nan"), None, "inf", 0, 0.0, False, ""]
    assert len({artifact_id("p", 1, {"x": value}, {}) for value in odd}) == len(odd)


@settings(deadline=None)
@given(values)
def test_canonical_json_reads_back_equal(value):
    assert json.loads(canonical_json(value)) == value


names = st.lists(st.text("abcdefgh", min_size=1, max_size=4), min_size=1, max_size=3).map(
    lambda parts: "/".join([*(part + "_" for part in parts[:-1]), parts[-1]])
)
contents = st.dictionaries(names, st.binary(max_size=64), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contents, specs, st.data())
def test_any_flipped_byte_in_any_file_is_found_and_named(files, spec, data):
    with tempfile.TemporaryDirectory() as root:
        store = ArtifactStore(Path(root))
        id = artifact_id("p", 1, spec, {})
        writer = store.writer("p", "u", id, version=1, spec=spec, inputs={})
        for name, content in files.items():
            writer.file(name).write_bytes(content)
        artifact = writer.publish({})
        assert store.verify() == [] and set(artifact.manifest["files"]) == set(files)
        name = data.draw(st.sampled_from([*(n for n in files if files[n]), "manifest.json"]))
        path = artifact.path / name
        whole = path.read_bytes()
        # A share: the manifest holds times and memory, so its length is not the same in a second run of an example.
        position = int(data.draw(st.floats(0, 1, exclude_max=True)) * len(whole))
        flipped = bytearray(whole)
        flipped[position] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(bytes(flipped))
        problems = store.verify()
        assert [problem.file for problem in problems if problem.artifact == artifact.name].count(name) == 1
        path.write_bytes(whole)
        assert store.verify() == []


@settings(max_examples=25, deadline=None)
@given(contents, specs)
def test_work_dropped_before_publishing_is_never_found_and_always_resumed(files, spec):
    with tempfile.TemporaryDirectory() as root:
        store = ArtifactStore(Path(root))
        id = artifact_id("p", 1, spec, {})
        for name, content in files.items():  # killed after every file
            store.writer("p", "u", id, version=1, spec=spec, inputs={}).file(name).write_bytes(content)
            assert store.find("p", "u", id) is None and store.all() == []
        artifact = store.writer("p", "u", id, version=1, spec=spec, inputs={}).publish({})
        assert {name: artifact.file(name).read_bytes() for name in files} == files
        assert store.find("p", "u", id) == artifact
