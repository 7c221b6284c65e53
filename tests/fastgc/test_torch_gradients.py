"""Encoding from and decoding into a PyTorch model's gradients: the bits of plain vectors, wrong uses refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import fastgc.torch  # noqa: E402
from fastgc import CorruptMessageError, NotDecodableError, arrays, schemes  # noqa: E402
from fastgc.torch import GradientDecoder, GradientEncoder  # noqa: E402

SEED = 31
ELEMENTS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SCHEMES = [
    schemes.uncoded(3),
    schemes.grouped(6, 3, 2),
    schemes.grouped(4, 4, 3),
    schemes.cyclic_repetition(5, 2),
    schemes.polynomial(5, 1, 2),
]
GC = schemes.grouped(6, 3, 2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Idle threads of PyTorch spin, and take the cores from others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(dtype: Any = torch.float64) -> Any:
    """Layers of odd sizes, a scalar, and one that is frozen."""
    torch.manual_seed(SEED)
    nn = torch.nn
    model = nn.Sequential(
        nn.Linear(5, 7), nn.Linear(7, 7), nn.PReLU(), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(10, 3)
    )
    model[1].requires_grad_(False)
    return model.to(dtype)


def backward(model: Any, partition: int) -> None:
    generator = torch.Generator().manual_seed(100 * SEED + partition)
    inputs = torch.randn(4, 1, 5, generator=generator).to(next(model.parameters()).dtype)
    (model(inputs) ** 2).sum().backward()


def vectors(model: Any, partitions: int) -> list[Any]:
    """The gradient of each partition, concatenated."""
    found = []
    for partition in range(partitions):
        model.zero_grad()
        backward(model, partition)
        found.append(np.concatenate([array(p.grad).reshape(-1) for p in model.parameters() if p.requires_grad]))
    model.zero_grad()
    return found


def array(tensor: Any) -> Any:
    return arrays.origin("tensor", tensor).view("tensor", tensor.detach())


def encoded(model: Any, gc: Any) -> dict[int, Any]:
    messages = {}
    for worker in range(gc.workers):
        encoder = GradientEncoder(gc, worker, model)
        for partition in encoder.partitions:
            backward(model, partition)
            encoder.add(partition)
        messages[worker] = encoder.message()
    return messages


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("gc", SCHEMES, ids=lambda gc: gc.name)
def test_a_round_trip_has_the_bits_of_plain_vectors(gc: Any, dtype: Any) -> None:
    model = model_of(dtype)
    plain = vectors(model, gc.partitions)
    messages = encoded(model, gc)
    assert all(p.grad is None for p in model.parameters())
    expected = {w: gc.encode(w, [plain[j] for j in held]) for w, held in enumerate(gc.assignment)}
    for worker, message in messages.items():
        assert message.dtype == dtype
        assert array(message).tobytes() == expected[worker].tobytes()
    decoder = GradientDecoder(gc, model)
    for worker in reversed(range(gc.stragglers, gc.workers)):  # the first ones straggle
        assert not decoder.ready or worker > gc.stragglers
        decoder.add(worker, messages[worker])
    assert decoder.ready
    assert decoder.missing == tuple(range(gc.stragglers))
    survivors = tuple(range(gc.stragglers, gc.workers))
    assert decoder.decode() == (survivors, ())
    total = gc.decode({w: expected[w] for w in survivors}, decoder.length)
    assert array(decoder.gradient).tobytes() == total.tobytes()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad.shape == p.shape for p in trained)
    assert np.concatenate([array(p.grad).reshape(-1) for p in trained]).tobytes() == total.tobytes()
    assert model[1].weight.grad is None


def test_training_takes_the_steps_of_the_plain_sum() -> None:
    coded, plain = model_of(), model_of()
    steps = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in (coded, plain)]
    encoders = [GradientEncoder(GC, worker, coded) for worker in range(GC.workers)]
    decoder = GradientDecoder(GC, coded)
    for step in range(3):
        for worker, encoder in enumerate(encoders):
            encoder.reset()
            if worker == step:  # straggles
                continue
            coded.zero_grad()
            for partition in encoder.partitions:
                backward(coded, partition)
                encoder.add(partition)
            decoder.add(worker, encoder.message())
        assert step not in decoder.decode().survivors
        for partition in range(GC.partitions):
            backward(plain, partition)
        for optimizer in steps:
            optimizer.step()
            optimizer.zero_grad(set_to_none=step == 1)
        decoder.reset()
    for a, b in zip(coded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_any_order_of_partitions_and_zeros_in_place() -> None:
    model = model_of()
    (expected,) = (encoded(model, GC)[w] for w in (2,))
    encoder = GradientEncoder(GC, 2, model, out=torch.full_like(expected, torch.nan))
    model.zero_grad(set_to_none=False)
    for partition in reversed(encoder.partitions):
        backward(model, partition)
        kept = [p.grad for p in model.parameters() if p.requires_grad]
        encoder.add(partition, set_to_none=False)
        assert all(p.grad is g for p, g in zip((p for p in model.parameters() if p.requires_grad), kept, strict=True))
        assert all((g == 0).all() for g in kept)
    assert torch.equal(encoder.message(), expected)


def test_nothing_is_concatenated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding reads the gradients where they lie, and decoding writes where the optimiser reads."""
    model = model_of()
    encoder = GradientEncoder(GC, 0, model)
    seen: list[Any] = []
    layout = encoder._parameters.layout
    encode = layout.encode
    monkeypatch.setattr(
        layout, "encode", lambda c, rows, *rest, **kw: seen.extend(rows[0]) or encode(c, rows, *rest, **kw)
    )
    backward(model, 0)
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    encoder.add(0)
    assert [a.__array_interface__["data"][0] for a in seen] == [g.data_ptr() for g in gradients]
    decoder = GradientDecoder(GC, model, out=(out := torch.empty(encoder.length, dtype=torch.float64)))
    for worker, message in encoded(model, GC).items():
        decoder.add(worker, message)
    decoder.decode()
    starts = np.cumsum([0, *(g.numel() for g in gradients)])[:-1]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert [p.grad.data_ptr() for p in trained] == [out.data_ptr() + 8 * int(start) for start in starts]
    assert decoder.gradient is out


def test_estimates_and_wrong_messages() -> None:
    model = model_of()
    messages = encoded(model, GC)
    decoder = GradientDecoder(GC, model)
    decoder.add(0, messages[0])
    with pytest.raises(NotDecodableError):
        decoder.decode()
    assert decoder.decode(approximate=True).survivors == (0,)
    model.zero_grad()
    gc = schemes.grouped(4, 4, 1)
    clean = encoded(model, gc)
    decoder = GradientDecoder(gc, model)
    for worker in range(4):
        decoder.add(worker, -clean[worker] if worker == 1 else clean[worker])
    assert decoder.decode(verify=True) == ((0, 2, 3), (1,))
    decoder.reset()
    decoder.add(0, clean[0])
    decoder.add(1, -clean[1])
    with pytest.raises(CorruptMessageError):
        decoder.decode(verify=True)


def test_fingerprints_tell_models_apart() -> None:
    model, same = model_of(), model_of()
    fingerprint = GradientEncoder(GC, 0, model).fingerprint
    assert fingerprint == GradientDecoder(GC, same).fingerprint
    others = [model_of(torch.float32), model_of()[::2], list(model.parameters()), model_of()[::-1]]
    assert len({fingerprint, *(GradientEncoder(GC, 0, other).fingerprint for other in others)}) == 5


# Errors ---------------------------------------------------------------------------------------------------------------


def changed(change: Callable[[Any], Any]) -> Callable[[], None]:
    """Add after a change of the model."""

    def call() -> None:
        model = model_of()
        encoder = GradientEncoder(GC, 0, model)
        backward(model, 0)
        change(model)
        encoder.add(0)

    return call


def replaced(model: Any) -> None:
    model[0].weight = torch.nn.Parameter(model[0].weight.detach().clone())


def swapped(model: Any) -> None:
    model[0], model[5] = model[5], model[0]


def sparse(model: Any) -> None:
    model[0].weight.grad = model[0].weight.grad.to_sparse()


def decoder_with(messages: dict[int, Any]) -> Any:
    decoder = GradientDecoder(GC, model_of())
    for worker, message in messages.items():
        decoder.add(worker, message)
    return decoder


P = torch.nn.Parameter
LENGTH = sum(p.numel() for p in model_of().parameters() if p.requires_grad)
SIZE = GC.message_length(LENGTH)
ONES = torch.ones(SIZE, dtype=torch.float64)
BAD: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("a number", lambda: GradientEncoder(GC, 0, 3), TypeError, "parameters must be a module or .*int"),
    ("one tensor", lambda: GradientEncoder(GC, 0, P(torch.ones(3))), TypeError, "parameters must be .*Parameter"),
    ("names", lambda: GradientEncoder(GC, 0, ["a"]), TypeError, r"parameters\[0\] must be a tensor, not str"),
    ("all frozen", lambda: GradientEncoder(GC, 0, model_of().requires_grad_(False)), ValueError, "at least one"),
    ("two types", lambda: GradientEncoder(GC, 0, torch.nn.ModuleList([model_of(), model_of(torch.float32)])), TypeError,
     "1.0.weight is float32 and 0.0.weight float64.*each apart"),
    ("complex", lambda: GradientEncoder(GC, 0, [P(torch.ones(3) + 0j)]), TypeError, r"parameters\[0\] .*complex64"),
    ("meta", lambda: GradientDecoder(GC, model_of().to("meta")), TypeError, "0.weight must be on the CPU.*not on meta"),
    ("no leaf", lambda: GradientEncoder(GC, 0, [P(torch.ones(3)) * 2]), ValueError, r"parameters\[0\] must be a leaf"),
    ("given twice", lambda: GradientEncoder(GC, 0, [P(torch.ones(3))] * 2), ValueError,
     r"parameters\[1\] is the same parameter as parameters\[0"),
    ("worker", lambda: GradientEncoder(GC, 6, model_of()), ValueError, "worker must be .*at most 5, not 6"),
    ("out of another type", lambda: GradientEncoder(GC, 0, model_of(), out=ONES.float()), ValueError,
     "out must be .*float64 on cpu.*, not torch.float32 on cpu"),
    ("out too long", lambda: GradientEncoder(GC, 0, model_of(), out=torch.ones(SIZE + 1).double()), ValueError,
     rf"out must be .*shape \({SIZE},\), not .*shape \({SIZE + 1},\)"),
    ("out strided", lambda: GradientEncoder(GC, 0, model_of(), out=torch.ones(2 * SIZE).double()[::2]), ValueError,
     "out must be a contiguous .*, strided"),
    ("an array as out", lambda: GradientEncoder(GC, 0, model_of(), out=ONES.numpy()), ValueError, "out .*ndarray"),
    ("no gradient", changed(lambda model: model.zero_grad()), ValueError, "0.weight has no gradient: call backward"),
    ("a sparse gradient", changed(sparse), TypeError, "the gradient of 0.weight must be a dense tensor"),
    ("frozen meanwhile", changed(lambda model: model[0].bias.requires_grad_(False)), ValueError,
     "number 1 was 0.bias and is 2.weight"),
    ("unfrozen meanwhile", changed(lambda model: model[1].requires_grad_()), ValueError,
     "number 2 was 2.weight and is 1.weight"),
    ("replaced meanwhile", changed(replaced), ValueError, "number 0 was 0.weight and is 0.weight, another tensor"),
    ("order changed", changed(swapped), ValueError, "trained parameters are not those of the beginning: number 0"),
    ("one more meanwhile", changed(lambda model: model.append(torch.nn.PReLU())), ValueError,
     "number 7 was none and is 6.weight"),
    ("message too early", lambda: GradientEncoder(GC, 0, model_of()).message(), ValueError, r"partitions \[0, 1, 2\]"),
    ("decoder: an array", lambda: decoder_with({0: ONES.numpy()}), TypeError, "message must be a tensor, not ndarray"),
    ("decoder: too short", lambda: decoder_with({0: ONES[1:]}), ValueError, rf"message must have shape \({SIZE},\)"),
    ("decoder: another type", lambda: decoder_with({0: ONES.float()}), TypeError,
     "message must .*float64, not float32"),
    ("decoder: unknown worker", lambda: decoder_with({6: ONES}), ValueError, "worker must be"),
    ("decoder: out too short", lambda: GradientDecoder(GC, model_of(), out=ONES), ValueError,
     "out must be a contiguous tensor"),
    ("decoder: too few", lambda: decoder_with({0: ONES}).decode(), NotDecodableError, r"missing are \[1, 2, 3, 4, 5\]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "pattern"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(call: Callable[[], Any], kind: type[Exception], pattern: str) -> None:
    with pytest.raises(kind, match=pattern) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_is_refused_changes_nothing() -> None:
    model = model_of()
    encoder = GradientEncoder(GC, 0, model)
    backward(model, 0)
    before = [p.grad for p in model.parameters()]
    with pytest.raises(ValueError, match="partition must be one of"):
        encoder.add(5)
    assert [p.grad for p in model.parameters()] == before
    encoder.add(0)
    backward(model, 0)
    with pytest.raises(ValueError, match="partition 0 was added already"):
        encoder.add(0)
    decoder = GradientDecoder(GC, model)
    decoder.gradient.fill_(7)
    decoder.add(0, torch.ones(SIZE, dtype=torch.float64))
    kept = [p.grad for p in model.parameters()]
    with pytest.raises(NotDecodableError):
        decoder.decode()
    assert (decoder.gradient == 7).all()
    assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))


def test_everything_public_is_documented() -> None:
    names = set(fastgc.torch.__all__)
    assert names == {"Decoded", "GradientDecoder", "GradientEncoder", "lincomb"}
    page = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    section = page.partition("## `fastgc.torch`")[2].partition("\n## ")[0]
    for owner in (fastgc.torch, GradientEncoder, GradientDecoder):
        for name in names if owner is fastgc.torch else [n for n in vars(owner) if not n.startswith("_")]:
            assert getattr(owner, name).__doc__
            assert f"{name}" in section
