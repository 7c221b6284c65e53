"""A model's trained parameters as the one gradient that workers encode and the master decodes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch

from fastgc.layout import Layout
from fastgc.torch._lincomb import ELEMENTS


class Parameters:
    """Those that require a gradient, in the model's order, with the layout of their elements.

    Parameters
    ----------
    source : Module, or iterable of parameters
    """

    def __init__(self, source: Any) -> None:
        self._module = source if isinstance(source, torch.nn.Module) else None
        if self._module is None and (isinstance(source, torch.Tensor) or not isinstance(source, Iterable)):
            raise TypeError(f"parameters must be a module or an iterable of parameters, not {type(source).__name__}")
        self._given = [] if self._module is not None else list(source)
        for i, parameter in enumerate(self._given):
            if not isinstance(parameter, torch.Tensor):
                raise TypeError(f"parameters[{i}] must be a tensor, not {type(parameter).__name__}")
        found = self._trained()
        if not found:
            raise ValueError("parameters must have at least one that requires a gradient")
        self.names = tuple(name for name, _ in found)
        self.tensors = tuple(parameter for _, parameter in found)
        first = self.tensors[0]
        seen: dict[int, str] = {}
        for name, parameter in found:
            if parameter.dtype not in ELEMENTS:
                raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, not {_short(parameter.dtype)}")
            if parameter.dtype != first.dtype:
                raise TypeError(
                    f"{name} is {_short(parameter.dtype)} and {self.names[0]} {_short(first.dtype)}, but a message has"
                    " one type: give the parameters of each apart"
                )
            if parameter.device.type not in ("cpu", "cuda"):
                raise TypeError(f"{name} must be on the CPU or on a CUDA device, not on {parameter.device}")
            if parameter.layout is not torch.strided or parameter.device != first.device:
                where = parameter.device if parameter.layout is torch.strided else parameter.layout
                raise TypeError(f"{name} must be a dense tensor on {first.device}, not {where}")
            if not parameter.is_leaf:
                raise ValueError(f"{name} must be a leaf, which keeps its gradient, not a result of other tensors")
            if id(parameter) in seen:
                raise ValueError(f"{name} is the same parameter as {seen[id(parameter)]}")
            seen[id(parameter)] = name
        self.dtype = first.dtype
        self.device = first.device
        self.layout = Layout(parameter.shape for parameter in self.tensors)

    def _trained(self) -> list[tuple[str, Any]]:
        named: Iterable[tuple[str, Any]]
        if self._module is not None:
            named = self._module.named_parameters()
        else:
            named = ((f"parameters[{i}]", parameter) for i, parameter in enumerate(self._given))
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]

    def check_out(self, out: Any, length: int) -> None:
        """That `out` is a tensor like the parameters, with so many elements one after the other."""
        wanted, found = f"{self.dtype} on {self.device} and of shape ({length},)", type(out).__name__
        if isinstance(out, torch.Tensor):
            found = f"{out.dtype} on {out.device} and of shape {tuple(out.shape)}"
            if found == wanted and out.is_contiguous():
                return
            found += "" if out.is_contiguous() else ", strided"
        raise ValueError(f"out must be a contiguous tensor of {wanted}, not {found}")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names, shapes and element type, in order, 64 hexadecimal digits."""
        lines = [str(self.dtype), *(f"{n} {s}" for n, s in zip(self.names, self.layout.shapes, strict=True))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def check(self) -> None:
        """That the model still trains these parameters, in this order; a ValueError names the first that differs."""
        now = self._trained()
        for i in range(max(len(now), len(self.tensors))):
            if i >= len(now) or i >= len(self.tensors) or now[i][1] is not self.tensors[i]:
                before = self.names[i] if i < len(self.tensors) else "none"
                after = now[i][0] if i < len(now) else "none"
                raise ValueError(
                    f"the trained parameters are not those of the beginning: number {i} was {before} and is {after}"
                    f"{', another tensor' if before == after else ''}; make a new encoder or decoder, on all ranks"
                )

    def gradients(self) -> list[Any]:
        """What the parameters have in ``.grad``."""
        self.check()
        found = []
        for name, parameter in zip(self.names, self.tensors, strict=True):
            gradient = parameter.grad
            if gradient is None:
                raise ValueError(
                    f"{name} has no gradient: call backward() first; for parameters that a loss need not reach, keep"
                    " zeros by zero_grad(set_to_none=False) and add(..., set_to_none=False), or freeze them"
                )
            if gradient.layout is not torch.strided:
                raise TypeError(f"the gradient of {name} must be a dense tensor, not {gradient.layout}")
            found.append(gradient.detach())
        return found


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
