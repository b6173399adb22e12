"""Progress: the file that other processes read, periodic lines, and failures that stop nothing."""

import io
import json

import pytest

from mechstudy.core.progress import NullProgress, Progress, duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_the_file_holds_the_count_the_rate_and_the_time_left(tmp_path, clock):
    progress = Progress(tmp_path, phase="train", unit="train[layer=1]", stream=io.StringIO(), clock=clock)
    with progress.bar("training", 100, "steps") as bar:
        for _ in range(20):
            clock.now += 0.5
            bar.advance(loss=0.25)
        content = json.loads((tmp_path / "progress.json").read_text())
    assert content["phase"] == "train" and content["unit"] == "train[layer=1]" and content["total"] == 100
    assert content["done"] == 20 and content["rate"] == 2.0 and content["eta"] == 40.0
    assert content["info"] == ["loss=0.25"] and content["updated"].endswith("+00:00")


def test_the_file_is_written_at_most_once_a_second_and_at_the_end(tmp_path, clock, monkeypatch):
    written = []
    monkeypatch.setattr("mechstudy.core.progress.write_json_atomic", lambda _, c: written.append(c["done"]))
    with Progress(tmp_path, stream=io.StringIO(), clock=clock).bar("x", 40) as bar:
        for _ in range(40):
            clock.now += 0.0625
            bar.advance()
    assert written == [0, 16, 32, 40]


def test_off_a_terminal_there_is_a_line_every_half_minute_and_at_the_end(clock, tmp_path):
    out = io.StringIO()
    progress = Progress(unit="u", stream=out, log_file=tmp_path / "logs" / "log.txt", clock=clock)
    with progress.bar("graphs", 4, "graphs") as bar:
        for _ in range(4):
            clock.now += 20
            bar.advance(loss=0.5)
    assert out.getvalue().splitlines() == [
        "u: graphs 2/4 graphs, 0.05 graphs/s, 40s left, loss=0.5",
        "u: graphs 4/4 graphs, 0.05 graphs/s, loss=0.5",
    ]
    logged = (tmp_path / "logs" / "log.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in logged] == out.getvalue().splitlines()


def test_work_done_by_an_earlier_run_does_not_count_for_the_rate(clock):
    with Progress(stream=io.StringIO(), clock=clock).bar("x", 100, done=50) as bar:
        clock.now += 10
        bar.advance(10)
        assert bar.done == 60 and bar.rate == 1.0 and bar.eta == 40.0


def test_the_rate_is_that_of_the_last_minute(clock):
    with Progress(stream=io.StringIO(), clock=clock).bar("x", None) as bar:
        for _ in range(10):  # slow to start with
            clock.now += 60
            bar.advance(1)
        for _ in range(200):
            clock.now += 1
            bar.advance(10)
        assert bar.rate == pytest.approx(10, rel=0.01) and bar.eta is None


def test_before_anything_is_done_there_is_no_rate(clock):
    with Progress(stream=io.StringIO(), clock=clock).bar("x", 5) as bar:
        clock.now += 3
        assert bar.rate is None and bar.eta is None and bar.text() == "x 0/5"


def test_the_bar_ends_and_its_file_is_written_when_the_work_fails(tmp_path, clock):
    progress = Progress(tmp_path, stream=io.StringIO(), clock=clock)
    with pytest.raises(KeyError), progress.bar("x", 5) as bar:
        bar.advance(2)
        raise KeyError
    assert json.loads((tmp_path / "progress.json").read_text())["done"] == 2


def test_a_disk_that_takes_no_more_stops_nothing(tmp_path, clock):
    (tmp_path / "file").write_text("")
    progress = Progress(tmp_path / "file", log_file=tmp_path / "file" / "log", stream=io.StringIO(), clock=clock)
    with progress.bar("x", 2) as bar:
        bar.advance()
        progress.log("still here")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_bars_nest_and_messages_go_above(clock):
    out = Terminal()
    progress = Progress(unit="u", stream=out, clock=clock)
    with progress.bar("outer", 2, "parts") as outer:
        with progress.bar("inner", 3, "steps") as inner:
            inner.advance(3, loss=0.5)
            progress.log("a message [not markup]")
        outer.advance(2)
    assert "outer" in out.getvalue() and "inner" in out.getvalue()
    assert "u: a message [not markup]" in out.getvalue()
    assert out.getvalue().endswith("\x1b[?25h"), "the cursor is shown again: the bars ended"


def test_the_null_progress_shows_nothing_and_keeps_messages(capsys):
    progress = NullProgress()
    with progress.bar("x", 2) as bar:
        bar.advance(2)
    progress.log("m")
    assert bar.done == 2 and progress.messages == ["m"] and capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (125, "2m05s"), (7620, "2h07m"), (100800, "1d04h")],
)
def test_durations_are_two_units_at_most(seconds, text):
    assert duration(seconds) == text
