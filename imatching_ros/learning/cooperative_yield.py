"""Between two pieces of its work the learner lets odometry go first; who runs it beside odometry says how."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from torch import Tensor, nn

GIVE_WAY: ContextVar[Callable[[], None]] = ContextVar(
    "give_way", default=lambda: None
)  # a new thread starts with the default


def give_way() -> None:
    """Called where the learner can wait; in line with odometry it returns at once."""
    GIVE_WAY.get()()


def give_way_backwards(at: Tensor) -> None:
    """Has the backward pass give way before it goes on from here. (Autograd works in the calling thread on a CPU; on CUDA in
    another one, which does not wait.)"""
    at.register_hook(_give_way_before)


def give_way_in_layers(matcher: nn.Module) -> None:
    """Has a learner's own matcher give way after each of its layers, and before each in the backward pass."""
    for layer in matcher.modules():
        if not any(True for _ in layer.children()):
            layer.register_forward_hook(_give_way_after)


def _give_way_after(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
    give_way()
    if isinstance(output, Tensor) and output.requires_grad:
        give_way_backwards(output)


def _give_way_before(gradient: Tensor) -> None:
    give_way()
