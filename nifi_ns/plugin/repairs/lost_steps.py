"""The viewer loses requests to render: its idle render thread overwrites them.

Every 0.2 seconds an idle render thread sends itself the action "static". If a request to render again (a "step")
arrives while it reads the camera for that action, the request is replaced, and the old picture stays. Not reported
upstream.
"""

from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine

upstream = RenderStateMachine.action


def _keep_request(self: RenderStateMachine, action: RenderAction) -> None:
    if action.action != "static" or self.next_action is None:
        upstream(self, action)


def install() -> None:
    """Prevent the thread's own "static" from replacing a request."""
    RenderStateMachine.action = _keep_request
