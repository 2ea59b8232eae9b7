"""Model outputs that are computed when they are read."""

from collections.abc import Callable, Iterator
from typing import Any

_NO_PICTURES = ("background", "gl_z_buf_depth")


class LazyOutputs(dict[str, Any]):
    """A dict whose values may be functions without arguments, each called once, when its key is first read.

    The viewer and `ns-render` list the keys and read only the output on display, outside the training lock. So an
    expensive output such as a restored view costs nothing unless it is displayed. Tensors are not callable, so values
    and functions cannot be confused.
    """

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, Callable):
            self[key] = value = value()
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Like `dict.get`, with the value computed."""
        return self[key] if key in self else default  # noqa: SIM401 - dict.get would not resolve it

    def keys(self) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the names of outputs that are pictures of the view's size, which the viewer offers.

        Splatfacto and the viewer add others that would crash it: the background is a single colour, and the depth by
        which it composes is smaller than the rest (and was the split screen's first choice).
        """
        return [key for key in self if key not in _NO_PICTURES]

    def items(self) -> Iterator[tuple[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Like `dict.items`, with every value computed."""
        return ((key, self[key]) for key in list(self))

    def values(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Like `dict.values`, with every value computed."""
        return (self[key] for key in list(self))

    def copy(self) -> "LazyOutputs":
        """Return a copy in which unread values are still unread."""
        copied = LazyOutputs()
        for key in self:
            copied[key] = super().__getitem__(key)
        return copied
