"""The viewer forgets to draw: its render thread, when it has nothing to do, overwrites what it was just asked to do.

Every 0.2 seconds an idle render thread tells itself that the camera is static. If a request to draw again (a "step")
arrives while it looks up the camera to say so, the request is replaced, and the old picture stays. Not reported
upstream.
"""

from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine

upstream = RenderStateMachine.action


def _keep_what_was_asked(self: RenderStateMachine, action: RenderAction) -> None:
    if action.action != "static" or self.next_action is None:
        upstream(self, action)


def install() -> None:
    """Let nothing that was asked for be replaced by the thread's own "static"."""
    RenderStateMachine.action = _keep_what_was_asked
