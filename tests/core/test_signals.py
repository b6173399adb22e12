"""Stop requests: answered at a safe point, and the resumed bytes are those of an uninterrupted run."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from mechstudy.core import signals
from mechstudy.core.progress import NullProgress
from mechstudy.core.signals import Stopped


@pytest.fixture(autouse=True)
def _handlers():
    """No request outlives a test."""
    with signals.polite():
        yield


class After(NullProgress):
    """Asks for a stop, by a real signal to this process, as the bars have been advanced ``n`` times."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

        self.on_advance = self._count

    def _count(self) -> None:
        self.n -= 1
        if self.n == 0:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_and_does_not_end_the_process(number):
    assert not signals.requested()
    os.kill(os.getpid(), number)
    assert signals.requested() and signals.reason() == signal.Signals(number).name
    with pytest.raises(Stopped, match=signal.Signals(number).name):
        signals.stop_if_requested()


def test_afterwards_the_earlier_handlers_are_back_and_nothing_is_requested():
    outer = signal.getsignal(signal.SIGTERM)
    with signals.polite():
        signals.request()
    assert signal.getsignal(signal.SIGTERM) is outer and not signals.requested()


def test_stopped_is_no_exception_that_a_failure_handler_could_take():
    assert not issubclass(Stopped, Exception)


def test_a_bar_raises_once_the_item_is_counted_and_only_where_it_may():
    signals.request()
    with NullProgress().bar("work", 3, stops=False) as bar:
        bar.advance()
    counted = None
    with pytest.raises(Stopped), NullProgress().bar("work", 3) as bar:
        counted = bar
        bar.advance()
    assert counted is not None and counted.done == 1


def _rows() -> torch.Tensor:
    return torch.randn(256, 8, generator=torch.Generator().manual_seed(0))


def _recipe(**changes):
    from mechstudy.dictionaries.config import TrainConfig

    return TrainConfig(steps=12, batch_size=32, log_every=5, checkpoint_every=5, tensorboard=False, **changes)


def _files(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_training_saves_the_step_it_is_at_and_ends_with_the_same_bytes(tmp_path):
    from mechstudy.dictionaries.config import DictionaryConfig
    from mechstudy.dictionaries.training.trainer import train
    from mechstudy.store.checkpoint import load_checkpoint

    architecture = DictionaryConfig(kind="sae", activation="batchtopk", expansion=4, k=4)
    train(architecture, _recipe(), _rows()).save(tmp_path / "whole")
    checkpoint = tmp_path / "checkpoint.safetensors"
    steps = []
    for n in (3, 4, 1):  # at steps that are no checkpoint_every step
        with signals.polite(), pytest.raises(Stopped):
            train(architecture, _recipe(), _rows(), checkpoint=checkpoint, progress=After(n))
        saved = load_checkpoint(checkpoint)
        assert saved is not None
        steps.append(saved[1]["step"])
    assert steps == [4, 9, 11], "the step after the request is the last one"
    train(architecture, _recipe(), _rows(), checkpoint=checkpoint).save(tmp_path / "resumed")
    assert _files(tmp_path / "whole") == _files(tmp_path / "resumed")


@pytest.mark.slow
def test_a_stop_asked_for_during_the_last_step_leaves_a_finished_training(tmp_path):
    from mechstudy.dictionaries.config import DictionaryConfig
    from mechstudy.dictionaries.training.trainer import train

    architecture = DictionaryConfig(kind="sae", expansion=2, k=2)
    assert train(architecture, _recipe(), _rows(), progress=After(12)).cfg.d_sae == 16


def test_trainings_of_one_pass_all_stop_after_the_same_step(tmp_path):
    from mechstudy.dictionaries.config import DictionaryConfig
    from mechstudy.dictionaries.training.train_many import Job, train_many
    from mechstudy.store.checkpoint import load_checkpoint

    class Pass:
        batch_size, widths, limits = 32, {"mlp_out.0": 8, "mlp_out.1": 8}, {}

        def batches(self, start: int = 0):
            while True:
                rows = torch.randn(32, 16, generator=torch.Generator().manual_seed(start))
                yield {"mlp_out.0": rows[:, :8], "mlp_out.1": rows[:, 8:]}
                start += 1

    def jobs(folder):
        architecture = DictionaryConfig(kind="sae", expansion=2, k=2)
        return [
            Job(site, architecture, _recipe(seed=seed), site, site, folder / site, folder / f"{site}.safetensors")
            for seed, site in enumerate(Pass.widths)
        ]

    def save(trained, folder):
        for name, dictionary in trained.items():
            dictionary.save(folder / name / "dictionary")

    save(train_many(jobs(tmp_path / "whole"), Pass()), tmp_path / "whole")
    with signals.polite(), pytest.raises(Stopped):
        train_many(jobs(tmp_path / "resumed"), Pass(), progress=After(6))
    for job in jobs(tmp_path / "resumed"):
        assert job.checkpoint is not None and (saved := load_checkpoint(job.checkpoint)) is not None
        assert saved[1]["step"] == 7
    save(train_many(jobs(tmp_path / "resumed"), Pass()), tmp_path / "resumed")
    for site in Pass.widths:
        assert _files(tmp_path / "whole" / site / "dictionary") == _files(tmp_path / "resumed" / site / "dictionary")


@pytest.mark.slow
def test_a_stopped_corpus_capture_resumes_to_the_same_bytes(tmp_path):
    from mechstudy.activations.capture import capture_corpus
    from mechstudy.models.sites import Site
    from tests.support.tiny import tiny_model

    model = tiny_model(dtype="float32")
    tokens = torch.randint(1, 257, (24, 16), generator=torch.Generator().manual_seed(0))
    sites = [Site("mlp_out", 1)]
    capture_corpus(model, tokens, sites, tmp_path / "whole", batch_tokens=32)
    checkpoint = tmp_path / "state.checkpoint"
    for n in (2, 5):
        with signals.polite(), pytest.raises(Stopped):
            capture_corpus(
                model, tokens, sites, tmp_path / "resumed", batch_tokens=32, progress=After(n), checkpoint=checkpoint
            )  # fmt: skip
        assert checkpoint.exists()
    capture_corpus(model, tokens, sites, tmp_path / "resumed", batch_tokens=64, checkpoint=checkpoint)
    assert _files(tmp_path / "whole") == _files(tmp_path / "resumed")


def test_the_processes_of_a_training_agree_when_one_of_them_is_asked():
    from mechstudy.dictionaries.training.data_parallel import ProcessGroup

    class Two(ProcessGroup):
        size = 2

        def total(self, number: float) -> float:
            return number + 1.0  # the other process was asked

    assert Two().any(False) and not ProcessGroup().any(False)
