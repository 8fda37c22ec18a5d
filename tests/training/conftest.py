import pytest

from mlff.training import task, trainer

from .toy import make_structures


@pytest.fixture(scope="session")
def structures():
    return make_structures(8, seed=0)


@pytest.fixture(scope="session")
def compiled():
    return {}


@pytest.fixture
def shared_compilations(compiled, monkeypatch):
    """Trainers with the same model and config share their compiled functions."""

    def shared(make):
        def cached(apply, config, *rest):
            model = repr(getattr(apply, "__self__", id(apply)))
            key = (make.__name__, model, config.training.ema_decay, config.model_dump_json(exclude={"training"}), rest)
            return compiled.setdefault(key, (apply, make(apply, config, *rest)))[1]

        return cached

    for module, name in ((trainer, "make_step"), (task, "make_eval_step")):
        monkeypatch.setattr(module, name, shared(getattr(module, name)))
