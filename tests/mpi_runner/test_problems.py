"""Every model the command line offers: coded training is training in one process, whoever straggles.

With the models, data, batches and optimisers of a run, in this process; survivors are drawn anew in every iteration,
and every worker has a model of its own, which sees only some iterations.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from fastgc import GradientCode, schemes
from mpi_runner import problems
from mpi_runner.cache import DataError
from mpi_runner.config import TrainConfig
from mpi_runner.models import gradient_and_loss
from mpi_runner.optimizers import mean_gradient, train_single
from mpi_runner.randomness import Sampler

SEED = 17
SCHEMES = {
    "uncoded": lambda: schemes.uncoded(4),
    "cyclic": lambda: schemes.cyclic_repetition(4, 2, seed=1),
    "grouped": lambda: schemes.grouped(4, load=4, reduction=2),
}
MODELS = [("logistic", "flights"), ("softmax", "flights"), ("softmax", "digits"), ("mlp", "digits"), ("cnn", "digits")]


def problem(model: str, data: str, dtype: str = "float64", **changes: Any) -> tuple[TrainConfig, problems.Problem]:
    usual = problems.MODELS[model]
    config = TrainConfig(
        scheme="uncoded", workers=4, iterations=12, run="", model=model, data=data, rows=400, seed=SEED, dtype=dtype,
        optimizer=usual.optimizer, batch=min(usual.batch, 64), **changes,
    )  # fmt: skip
    if model in ("mlp", "cnn") and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    try:
        problems.prepare(config)
    except DataError as error:
        pytest.skip(str(error))
    return config, problems.attach(config)


def coded(scheme: GradientCode, config: TrainConfig, parts: list[Any], each: list[problems.Problem]) -> Any:
    """Training with coded messages; every worker draws and differentiates by itself, for the iterations it is in."""
    rng = np.random.default_rng(SEED)
    optimizer = each[0].make_optimizer()
    sampler = Sampler(config.seed, scheme.partitions, config.batch)
    for iteration in range(config.iterations):
        survivors = sorted(rng.permutation(4)[: 4 - rng.integers(0, scheme.stragglers + 1)].tolist())
        sent, counts = {}, {}
        for worker in survivors:
            gradients = []
            for number in scheme.assignment[worker]:
                part = sampler.draw(parts[number], number, iteration)
                gradients.append(gradient_and_loss(each[worker].model, optimizer.parameters, part)[0].copy())
                counts[number] = part.count
            sent[worker] = scheme.encode(worker, gradients)
        total = scheme.decode(sent, len(optimizer.parameters))
        count = sum(counts.values()) if len(counts) == 4 else 0
        optimizer.update(mean_gradient(total, count, each[0].l2, optimizer.parameters))
    return optimizer.model.copy()


# The flights have 243,485 features: one scheme is enough there.
CASES = [(model, data, scheme) for model, data in MODELS for scheme in (SCHEMES if data == "digits" else ["grouped"])]


@pytest.mark.parametrize(("model", "data", "scheme"), CASES, ids=["-".join(case) for case in CASES])
def test_coded_training_is_single_process_training(model: str, data: str, scheme: str) -> None:
    config, own = problem(model, data)
    code = SCHEMES[scheme]()
    parts = [own.load_train(number, 4) for number in range(4)]
    sampler = Sampler(config.seed, 4, config.batch)
    single = train_single(own.model, parts, own.make_optimizer(), config.iterations, own.l2, sampler=sampler)
    found = coded(code, config, parts, [problems.attach(config) for _ in range(4)])
    difference = np.linalg.norm(found - single) / np.linalg.norm(single)
    # float64, and Adam divides by gradients' sizes: where they are tiny, roundings grow.
    assert difference <= (1e-9 if config.optimizer == "nesterov" else 1e-6), f"seed {SEED}"
    assert np.linalg.norm(found - own.model.initial()) > 1e-3 * np.linalg.norm(single)


@pytest.mark.parametrize(("model", "data"), MODELS, ids=[f"{m}-{d}" for m, d in MODELS])
def test_the_usual_settings_train(model: str, data: str) -> None:
    config, own = problem(model, data, "float32")
    assert own.model.initial().dtype == np.float32
    losses: list[float] = []
    parts = [own.load_train(number, 4) for number in range(4)]
    sampler = Sampler(config.seed, 4, config.batch)
    train_single(own.model, parts, own.make_optimizer(), 12, own.l2, lambda i, loss, m: losses.append(loss), sampler)
    assert losses[-1] < 0.98 * losses[0]
    assert own.train_rows == 400


def test_given_settings_replace_the_usual_ones() -> None:
    _, own = problem("softmax", "digits", step=0.125, l2=0.5)
    assert own.l2 == 0.5
    assert own.make_optimizer().step == 0.125  # type: ignore[attr-defined]
    _, own = problem("softmax", "digits")
    assert own.l2 == 10 / 400
    inputs = own.load_train(0, 1).inputs
    smoothness = np.linalg.norm(inputs, 2) ** 2 / 800
    assert own.make_optimizer().step == pytest.approx(1 / (smoothness + own.l2))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("model", "data"), [("logistic", "digits"), ("mlp", "flights"), ("cnn", "flights")])
def test_models_that_do_not_go_with_the_data(model: str, data: str) -> None:
    with pytest.raises(ValueError, match=f"^--data must be one of .* for {model}, not '{data}'$"):
        problems.check(model, data)
