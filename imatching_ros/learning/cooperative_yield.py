"""Cooperative yield: between two pieces of its work the learner lets odometry run; the worker decides for how long."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from torch import Tensor, nn

# A new thread starts with the default.
YIELD: ContextVar[Callable[[], None]] = ContextVar("cooperative_yield", default=lambda: None)


def cooperative_yield() -> None:
    """Called where the learner can wait; in sync mode it returns at once."""
    YIELD.get()()


def yield_in_backward(at: Tensor) -> None:
    """Yields in the backward pass before it continues from `at`. (On CUDA, autograd runs in a thread of its own, which does not
    wait.)"""
    at.register_hook(_yield_before)


def yield_in_layers(matcher: nn.Module) -> None:
    """Makes a matcher of the learner yield after each of its layers, and before each in the backward pass."""
    for layer in matcher.modules():
        if not any(True for _ in layer.children()):
            layer.register_forward_hook(_yield_after)


def _yield_after(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
    cooperative_yield()
    if isinstance(output, Tensor) and output.requires_grad:
        yield_in_backward(output)


def _yield_before(gradient: Tensor) -> None:
    cooperative_yield()
