"""Model outputs that are computed when they are read."""

from collections.abc import Callable, Iterator
from typing import Any

_NO_PICTURES = ("background", "gl_z_buf_depth")


class LazyOutputs(dict[str, Any]):
    """A dict whose values may be functions without arguments. Each is called once, when its key is first read.

    The viewer and `ns-render` list the keys and read only the displayed output, outside the training lock. So an
    expensive output such as a restored view costs nothing unless it is displayed. Tensors are not callable, so values
    and functions cannot be confused.
    """

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, Callable):
            self[key] = value = value()
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return the computed value, like `dict.get`."""
        return self[key] if key in self else default  # noqa: SIM401 - dict.get would not resolve it

    def keys(self) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the names of the outputs that are pictures of the view's size, for the viewer to offer.

        The viewer crashes on two others: the background is a single colour, and the depth buffer, which the viewer adds
        and offered as the split screen's first choice, is smaller than the view.
        """
        return [key for key in self if key not in _NO_PICTURES]

    def items(self) -> Iterator[tuple[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Iterate like `dict.items`, and compute every value."""
        return ((key, self[key]) for key in list(self))

    def values(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Iterate like `dict.values`, and compute every value."""
        return (self[key] for key in list(self))

    def copy(self) -> "LazyOutputs":
        """Return a copy, without computing unread values."""
        copied = LazyOutputs()
        for key in self:
            copied[key] = super().__getitem__(key)
        return copied
