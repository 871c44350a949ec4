"""rclpy's managed node, made to say what went wrong in a transition, and to outlive one that is not possible."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any

from lifecycle_msgs.srv import ChangeState
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn


class ManagedNode(LifecycleNode):
    """A node with a life cycle."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        change = self._service_change_state.callback

        def answer(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            before = self.state_label
            try:
                return change(request, response)
            except rclpy_implementation.RCLError:  # rclpy lets it end the node
                asked = request.transition.label or request.transition.id
                self.get_logger().error(f"the transition {asked} is not possible: the node is {before}")
                response.success = False
                return response

        self._service_change_state.callback = answer

    @property
    def state_label(self) -> str:
        """unconfigured, inactive, active, finalized, or the transition that is under way."""
        return self._state_machine.current_state[1]


def tell_errors(transition: Callable) -> Callable:
    """rclpy takes an exception of a transition for an answer and says nothing of it."""

    @functools.wraps(transition)
    def told(node: LifecycleNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception:
            node.get_logger().error(f"{transition.__name__} failed:\n{traceback.format_exc()}")
            raise

    return told
