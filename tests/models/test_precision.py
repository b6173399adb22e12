"""The choice of a precision is made once per machine."""

from mechstudy.models.precision import faster_dtype


def test_the_faster_precision_is_measured_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHSTUDY_CACHE", str(tmp_path))
    choice = faster_dtype(16, 64, "cpu", 32)
    assert choice in ("float32", "bfloat16")
    [file] = tmp_path.glob("choices-*.json")
    other = {"float32": "bfloat16", "bfloat16": "float32"}[choice]
    file.write_text(file.read_text().replace(choice, other))
    assert faster_dtype(16, 64, "cpu", 32) == other


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_measurement(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHSTUDY_CACHE", str(tmp_path / "file" / "below"))
    (tmp_path / "file").write_text("not a folder")
    assert faster_dtype(16, 64, "cpu", 32) in ("float32", "bfloat16")
