"""Encoding a worker's gradients from where a backward pass leaves them, and decoding their sum to where an optimiser
looks for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastgc.gradient_code import GradientCode
from fastgc.torch._parameters import Parameters
from fastgc.torch._streams import on_current_stream
from fastgc.verification import Noise


class GradientEncoder:
    """Adds up a worker's message from the gradients of a model, partition by partition.

    Each `add` reads the ``.grad`` of the parameters where they lie; nothing is concatenated. The message has the bits
    of `fastgc.GradientCode.encode` on the concatenated gradients, whatever the order of the partitions. Gradients of
    one that comes before its turn are copied until then, and so are tensors that are not contiguous; nothing else is.

    ::

        encoder = GradientEncoder(gc, worker, model)
        for partition in encoder.partitions:
            loss_sum(model, data[partition]).backward()
            encoder.add(partition)
        send(encoder.message())
        encoder.reset()

    Parameters
    ----------
    gc : GradientCode
    worker : int
    parameters : Module, or iterable of parameters
        Those that require a gradient now are encoded, in the order given. They are on one device and of one element
        type; where a model has several, each wants an encoder of its own. All ranks must mean the same parameters:
        compare `fingerprint`.
    out : Tensor, shape (message length,), optional
        Where messages are made, such as a buffer to send from. Contiguous, of the parameters' element type.

    Attributes
    ----------
    partitions : tuple of int
        The worker's, in the order in which nothing is copied.
    length : int
        Number of elements of the gradient.
    fingerprint : str
        SHA-256 of the parameters' names, shapes and element type.

    Raises
    ------
    TypeError, ValueError
        A wrong worker; parameters of several element types, on several devices or one without kernels, sparse,
        no leaves, given twice, or none.
    """

    def __init__(self, gc: GradientCode, worker: int, parameters: Any, *, out: Any = None) -> None:
        self._parameters = Parameters(parameters)
        self.length = self._parameters.layout.length
        self.fingerprint = self._parameters.fingerprint
        if out is not None:
            self._parameters.check_out(out, gc.message_length(self.length))
        self._encoder = gc.encoder(worker, self._parameters.layout, self._parameters.dtype, out)
        self.partitions = gc.assignment[worker]

    def add(self, partition: int, *, set_to_none: bool = True) -> None:
        """Take the parameters' ``.grad`` as the gradient of one partition, and clear them for the next.

        Parameters
        ----------
        partition : int
            One of `partitions`, not added before.
        set_to_none : bool
            Clear by ``None``, as `torch.optim.Optimizer.zero_grad` does, or else by zeros in place.

        Raises
        ------
        ValueError, TypeError
            A wrong partition; a parameter without a gradient, or with a sparse one; a model that trains other
            parameters than at the beginning. Nothing is taken and nothing cleared.
        """
        gradients = self._parameters.gradients()
        with on_current_stream(self._parameters.device):
            self._encoder.add(partition, gradients)
        for parameter in self._parameters.tensors:
            if set_to_none:
                parameter.grad = None
            else:
                parameter.grad.detach().zero_()

    def message(self) -> Any:
        """The message, once every partition was added: `out`, or a tensor of the encoder that the next one overwrites.

        Returns
        -------
        Tensor, shape (message length,)

        Raises
        ------
        ValueError
            Some partitions have not been added; it names them.
        """
        return self._encoder.message()

    def reset(self) -> None:
        """Begin the next message, in the same memory."""
        self._encoder.reset()


class Decoded(NamedTuple):
    """Whose messages a gradient is made of, and whose were found to be wrong and left out."""

    survivors: tuple[int, ...]
    corrupt: tuple[int, ...]


class GradientDecoder:
    """Takes messages as they arrive, says when they are enough, and decodes their sum into the ``.grad`` of a model.

    One vector holds the whole gradient, and decoding is one pass from the messages to it; the parameters' ``.grad``
    become views of it, in place of what they were. The bits are those of `fastgc.GradientCode.decode`.

    ::

        decoder = GradientDecoder(gc, model)
        while not decoder.ready:
            decoder.add(*receive())
        decoder.decode()
        optimizer.step()
        optimizer.zero_grad()
        decoder.reset()

    Parameters
    ----------
    gc : GradientCode
    parameters : Module, or iterable of parameters
        As for `GradientEncoder`, with the same `fingerprint`.
    out : Tensor, shape (length,), optional
        The vector. Contiguous, of the parameters' element type.

    Attributes
    ----------
    gradient : Tensor, shape (length,)
        The vector: what `decode` last wrote.
    length : int
    fingerprint : str
        As of `GradientEncoder`.

    Raises
    ------
    TypeError, ValueError
        As `GradientEncoder`.
    """

    def __init__(self, gc: GradientCode, parameters: Any, *, out: Any = None) -> None:
        self._parameters = Parameters(parameters)
        self.length = self._parameters.layout.length
        self.fingerprint = self._parameters.fingerprint
        dtype, device = self._parameters.dtype, self._parameters.device
        self.gradient = torch.empty(self.length, dtype=dtype, device=device) if out is None else out
        self._parameters.check_out(self.gradient, self.length)
        self._views = self._parameters.layout.views(self.gradient)
        self._collector = gc.collector(self.length, self._parameters.dtype)

    def add(self, worker: int, message: Any) -> None:
        """Take a worker's message.

        Parameters
        ----------
        worker : int
            Not added since the last `reset`.
        message : Tensor, shape (message length,)
            On the parameters' device. A reference is kept until `reset`: it must not change before.

        Raises
        ------
        ValueError, TypeError
            An unknown or repeated worker, a wrong length or element type, or a gradient already decoded; nothing is
            kept.
        """
        if not isinstance(message, torch.Tensor):
            raise TypeError(f"message must be a tensor, not {type(message).__name__}")
        self._collector.add(worker, message.detach())

    @property
    def ready(self) -> bool:
        """Whether `decode` can be called, as `fastgc.streaming.Collector.ready` says."""
        return self._collector.ready

    @property
    def survivors(self) -> tuple[int, ...]:
        """The workers heard so far, increasing."""
        return self._collector.survivors

    @property
    def missing(self) -> tuple[int, ...]:
        """The workers not heard yet, increasing."""
        return self._collector.missing

    def decode(self, *, approximate: bool | str = False, verify: bool | Noise = False) -> Decoded:
        """Write the sum of all partitions' gradients into the parameters' ``.grad``.

        The survivors are fixed from here until `reset`.

        Parameters
        ----------
        approximate, verify
            As in `fastgc.GradientCode.decode`.

        Returns
        -------
        Decoded
            The survivors, and with `verify` the workers whose messages were left out.

        Raises
        ------
        NotDecodableError, CorruptMessageError
            As `fastgc.GradientCode.decode`; more messages may be added. Every ``.grad`` is as it was, and so is
            `gradient`.
        ValueError
            The model trains other parameters than at the beginning.
        """
        self._parameters.check()
        with on_current_stream(self._parameters.device):
            result = self._collector.gradient(self.gradient, approximate=approximate, verify=verify)
        for parameter, piece in zip(self._parameters.tensors, self._views, strict=True):
            parameter.grad = piece
        return Decoded(self._collector.survivors, result.corrupt if isinstance(result, tuple) else ())

    def reset(self) -> None:
        """Forget all messages and begin the next gradient. What was decoded stays."""
        self._collector.reset()
