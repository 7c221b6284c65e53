"""`fastgc.kernels.lincomb` as operators of PyTorch.

``fastgc::lincomb`` makes its result, and is what autograd, vmap and the compiler see; ``fastgc::lincomb_out`` writes
into memory that is there. Inputs are one matrix of rows, or a list of vectors, which are not gathered.

The operators are put into the dispatcher by `torch.library.Library`: a call costs half of what one through
`torch.library.custom_op` does, which looks for aliases and mutations each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastgc import kernels
from fastgc.torch._streams import on_current_stream

ELEMENTS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_library = torch.library.Library("fastgc", "DEF")
_library.define("lincomb(Tensor coefficients, Tensor[] inputs) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.define(
    "lincomb_out(Tensor coefficients, Tensor[] inputs, Tensor(a!)[] out, bool accumulate=False) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_combine = torch.ops.fastgc.lincomb.default
_combine_into = torch.ops.fastgc.lincomb_out.default


def lincomb(coefficients: Any, inputs: Any, out: Any = None, *, accumulate: bool = False) -> Any:
    """Linear combinations of rows: ``out[p] = sum over q of coefficients[p, q] * inputs[q]``.

    A registered operator: it can be differentiated, also twice and in forward mode, with respect to `inputs` and to
    `coefficients`; it works under `torch.vmap` and `torch.func`, and `torch.compile` takes it into the graph without a
    break. The bits are those of `fastgc.kernels.lincomb`, on as many threads as `torch.get_num_threads` says or fewer.

    Parameters
    ----------
    coefficients : Tensor of real numbers, shape (P, Q), or array_like
        On the CPU. Rounded once to the type computed in: float64 for rows in float64, else float32.
    inputs : Tensor of shape (Q, L), or sequence of Q tensors of shape (L,)
        float32, float64, float16 or bfloat16, all of one type and on one device. Read where they lie; only where the
        elements of a row are not next to each other they are copied first. Never modified.
    out : Tensor of shape (P, L), or sequence of P tensors of shape (L,), optional
        Where the result goes, of the inputs' element type; inputs in float16 or bfloat16 may also go out as float32,
        and inputs in float32 as either. Elements of a row must be next to each other; no row may overlap another or an
        input in memory. Then nothing is differentiated.
    accumulate : bool
        Add to what `out` holds instead of replacing it.

    Returns
    -------
    Tensor of shape (P, L), or `out` as it was given

    Raises
    ------
    TypeError, ValueError
        As `fastgc.kernels.lincomb`; `out` is untouched.
    RuntimeError
        `out` where gradients are recorded and an argument requires one.
    NotImplementedError
        A device that there are no kernels for.

    Notes
    -----
    With G the gradient of the result, that of `inputs` is ``lincomb(coefficients.T, G)`` and that of `coefficients` is
    ``G @ inputs.T``, taken in the type computed in. Inputs are kept for it only where `coefficients` requires a
    gradient.
    """
    if not isinstance(coefficients, torch.Tensor):
        coefficients = torch.as_tensor(coefficients, dtype=torch.float64)
    rows = _rows("inputs", inputs)
    if out is None:
        if accumulate:
            raise ValueError("out: must be given to accumulate into")
        if torch.compiler.is_compiling() or not _transformed():
            return _combine(coefficients, rows)
        return _Differentiable.apply(coefficients, *rows)
    results = _rows("out", out)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (coefficients, *rows, *results)):
        raise RuntimeError("out: what requires a gradient cannot be combined into it: use no_grad(), or leave it out")
    _combine_into(coefficients, rows, results, accumulate)
    return out


def _rows(name: str, value: Any) -> list[Any]:
    """What the operators take: a list with one matrix, or with vectors."""
    if isinstance(value, torch.Tensor):
        if value.dim() != 2:
            raise ValueError(f"{name}: expected 2 dimensions, got shape {tuple(value.shape)}")
        return [value]
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name}: expected a 2-D tensor or a sequence of 1-D tensors, got {type(value).__name__}")
    if not value:
        raise ValueError(f"{name}: expected at least one row, got none")
    for i, item in enumerate(value):
        if not isinstance(item, torch.Tensor):
            raise TypeError(f"{name}[{i}]: expected a 1-D tensor, got {type(item).__name__}")
        if item.dim() != 1:
            raise ValueError(f"{name}[{i}]: expected a 1-D tensor, got shape {tuple(item.shape)}")
    return list(value)


# Numbers --------------------------------------------------------------------------------------------------------------


def _compute(
    coefficients: Any, inputs: Sequence[Any], out: Sequence[Any] | None = None, accumulate: bool = False
) -> Any:
    first = inputs[0]
    matrix, rows, results = _matrix(coefficients), _given(inputs), None if out is None else _given(out)
    threads = torch.get_num_threads()
    if first.is_cpu and not any(t.requires_grad for t in (coefficients, *inputs, *(out or ()))):
        return kernels.lincomb(matrix, rows, results, accumulate=accumulate, threads=threads)
    # Gradients are recorded above: that the kernel knows nothing of them is right.
    with torch.no_grad(), on_current_stream(first.device):
        return kernels.lincomb(matrix, rows, results, accumulate=accumulate, threads=threads)


def _compute_into(coefficients: Any, inputs: Sequence[Any], out: Sequence[Any], accumulate: bool = False) -> None:
    _compute(coefficients, inputs, out, accumulate)


def _matrix(coefficients: Any) -> Any:
    """The coefficients as the kernel reads them: float32 and float64 are not copied here."""
    if coefficients.is_complex():
        raise TypeError(f"coefficients: expected real numbers, got {coefficients.dtype}")
    return coefficients if coefficients.dtype in (torch.float32, torch.float64) else coefficients.double()


def _given(rows: Sequence[Any]) -> Any:
    """Rows as a caller would give them."""
    return rows[0] if rows[0].dim() == 2 else rows


for _device in ("CPU", "CUDA"):
    _library.impl("lincomb", _compute, _device)
    _library.impl("lincomb_out", _compute_into, _device)


# Shapes alone, for tracing --------------------------------------------------------------------------------------------


def _checked(coefficients: Any, inputs: Sequence[Any]) -> tuple[Any, Any]:
    """P and L of arguments that fit together, by what is known without their memory."""
    if coefficients.dim() != 2:
        raise ValueError(f"coefficients: expected 2 dimensions, got shape {tuple(coefficients.shape)}")
    count, length = _size("inputs", inputs)
    if coefficients.shape[1] != count:
        shape = tuple(coefficients.shape)
        raise ValueError(f"coefficients: expected {count} columns, one for each input, got shape {shape}")
    return coefficients.shape[0], length


def _size(name: str, rows: Sequence[Any]) -> tuple[Any, Any]:
    first = rows[0]
    if first.dtype not in ELEMENTS:
        raise TypeError(f"{name}: expected dtype float32, float64, float16 or bfloat16, got {first.dtype}")
    for i, row in enumerate(rows):
        if row.dtype != first.dtype:
            raise TypeError(f"{name}[{i}]: expected dtype {first.dtype} like {name}[0], got {row.dtype}")
        if row.shape[-1] != first.shape[-1]:
            raise ValueError(f"{name}[{i}]: expected length {first.shape[-1]} like {name}[0], got {row.shape[-1]}")
    return first.shape[0] if first.dim() == 2 else len(rows), first.shape[-1]


@torch.library.register_fake("fastgc::lincomb", lib=_library)  # type: ignore[untyped-decorator, unused-ignore]
def _fake(coefficients: Any, inputs: Sequence[Any]) -> Any:
    return inputs[0].new_empty(_checked(coefficients, inputs))


@torch.library.register_fake("fastgc::lincomb_out", lib=_library)  # type: ignore[untyped-decorator, unused-ignore]
def _fake_into(coefficients: Any, inputs: Sequence[Any], out: Sequence[Any], accumulate: bool = False) -> None:
    count, length = _checked(coefficients, inputs)
    if _size("out", out) != (count, length):
        raise ValueError(f"out: expected {count} rows of length {length}, got {tuple(map(str, _size('out', out)))}")


# Gradients ------------------------------------------------------------------------------------------------------------


# PyTorch refuses to take the formulas of registered operators through torch.func, and in forward mode drops their
# tangents in silence. There an autograd function says the same; elsewhere it would only be slower.


def _transformed() -> bool:
    active: bool = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    return active


class _Differentiable(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
    @staticmethod
    def forward(coefficients: Any, *rows: Any) -> Any:
        return _combine(coefficients, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[Any, ...]:
        of_coefficients, of_rows = _gradients(ctx, gradient, ctx.needs_input_grad[0], ctx.needs_input_grad[1:])
        return of_coefficients, *of_rows

    @staticmethod
    def jvp(ctx: Any, of_coefficients: Any, *of_rows: Any) -> Any:
        coefficients, *rows = ctx.saved_tensors
        terms = [] if of_coefficients is None else [lincomb(of_coefficients, _given(rows))]
        if moved := [q for q, tangent in enumerate(of_rows) if tangent is not None]:
            columns = coefficients if rows[0].dim() == 2 else coefficients[:, moved]
            terms.append(lincomb(columns, _given([of_rows[q] for q in moved])))
        return sum(terms[1:], terms[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], coefficients: Any, *rows: Any) -> tuple[Any, int]:
        return _batched(info, (in_dims[0], in_dims[1:]), coefficients, rows)


def _keep(ctx: Any, inputs: Sequence[Any]) -> None:
    coefficients, *rows = inputs
    ctx.form = rows[0].dim(), rows[0].dtype
    # Rows are long: they are held until the backward pass only where it reads them.
    ctx.save_for_backward(coefficients, *(rows if ctx.needs_input_grad[0] else ()))


def _gradients(ctx: Any, gradient: Any, of_matrix: bool, needed: Sequence[bool]) -> tuple[Any, list[Any]]:
    coefficients, *rows = ctx.saved_tensors
    dimensions, dtype = ctx.form
    of_rows: list[Any] = [None] * len(needed)
    if dimensions == 2 and needed[0]:
        of_rows = [lincomb(coefficients.t(), gradient)]
    elif places := [q for q, need in enumerate(needed) if need]:
        for q, row in zip(places, lincomb(coefficients.t()[places], gradient).unbind(0), strict=True):
            of_rows[q] = row
    if not of_matrix:
        return None, of_rows
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    gradient = gradient.to(wide)
    if dimensions == 2:
        product = gradient @ rows[0].to(wide).t()
    else:  # no matrix of the rows is made
        product = torch.stack([gradient @ row.to(wide) for row in rows], dim=1)
    return product.to(coefficients), of_rows


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _keep(ctx, (inputs[0], *inputs[1]))


def _backward(ctx: Any, gradient: Any) -> tuple[Any, list[Any]]:
    return _gradients(ctx, gradient, ctx.needs_input_grad[0], ctx.needs_input_grad[1])


torch.library.register_autograd("fastgc::lincomb", _backward, setup_context=_setup, lib=_library)


# vmap -----------------------------------------------------------------------------------------------------------------


def _batched(info: Any, in_dims: Any, coefficients: Any, inputs: Sequence[Any]) -> tuple[Any, int]:
    """A batch of matrices is one with more rows, a batch of inputs one of longer inputs, and both go one by one."""
    matrix_dim, row_dims = in_dims
    size = info.batch_size
    if all(dim is None for dim in row_dims):
        matrices = coefficients.movedim(matrix_dim, 0)
        result = lincomb(matrices.flatten(0, 1), _given(inputs))
        return result.unflatten(0, (size, matrices.shape[1])), 0
    # The batch goes right before the elements of a row: (Q, B, L), or (B, L) each.
    rows = [
        row.unsqueeze(-2).expand(*row.shape[:-1], size, row.shape[-1]) if dim is None else row.movedim(dim, -2)
        for row, dim in zip(inputs, row_dims, strict=True)
    ]
    if matrix_dim is None:
        result = lincomb(coefficients, _given([row.flatten(-2) for row in rows]))
        return result.unflatten(1, (size, rows[0].shape[-1])), 1
    matrices = coefficients.movedim(matrix_dim, 0)
    each = [lincomb(matrices[b], _given([row.select(-2, b) for row in rows])) for b in range(size)]
    return torch.stack(each), 0


torch.library.register_vmap("fastgc::lincomb", _batched, lib=_library)
