"""How a view should be restored, as chosen in the viewer's panel or a run's config."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

_TINT = (1.0, 0.1, 0.1)


@dataclass(frozen=True)
class RestorationChoice:
    """Which restorer is applied to what, and how its result is blended into the view."""

    restorer: Path | None = None
    """Folder, checkpoint or hub id of the restorer; None: only reference residuals."""
    use_photos: bool = False
    """Correct the render with reference residuals before it is restored."""
    strength: float = 1.0
    """Share of the change to apply, in [0, 1]."""
    in_rgb: bool = False
    """Restore the output `rgb`, too."""
    show_change: bool = False
    """Tint pixels red where restoration changed them."""

    def blend(self, rgb: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Return the picture to display, [H, W, 3] in [0, 1].

        Args:
            rgb: the render, [H, W, 3] in [0, 1].
            before: the restorer's input, of the same shape.
            after: the restorer's output at full strength, of the same shape.
        """
        picture = before.lerp(after, self.strength)
        if not self.show_change:
            return picture
        change = (picture - rgb).abs().mean(dim=-1, keepdim=True)
        # the largest changes in this view get the full tint, unless even those are barely visible
        strongest = change.flatten().quantile(0.99).clamp(min=4 / 255)
        return picture.lerp(picture.new_tensor(_TINT), 0.8 * (change / strongest).clamp(0, 1))
