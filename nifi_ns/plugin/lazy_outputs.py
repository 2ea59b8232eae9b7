"""Outputs that cost nothing until somebody looks at them."""

from collections.abc import Callable, Iterator
from typing import Any

_NO_PICTURES = ("background", "gl_z_buf_depth")


class LazyOutputs(dict[str, Any]):
    """A dict in which a value may be a function of no arguments, called once, when its key is first read.

    The viewer and `ns-render` test which keys there are and read only the one on display, outside the training lock,
    so an expensive output (a restored view) costs nothing unless it is shown. Tensors are not callable, so that a
    value is never mistaken for a recipe.
    """

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, Callable):
            self[key] = value = value()
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """As `dict.get`, resolving the value."""
        return self[key] if key in self else default  # noqa: SIM401 - dict.get would not resolve it

    def keys(self) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The names of outputs that are pictures of the view's size.

        The viewer offers these. It would die of what else splatfacto and itself put here: the background is one colour,
        and the depth that it composes by is smaller than the rest (and was the split screen's first choice).
        """
        return [key for key in self if key not in _NO_PICTURES]

    def items(self) -> Iterator[tuple[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As `dict.items`, resolving every value."""
        return ((key, self[key]) for key in list(self))

    def values(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As `dict.values`, resolving every value."""
        return (self[key] for key in list(self))

    def copy(self) -> "LazyOutputs":
        """A copy whose unread values are still unread."""
        copied = LazyOutputs()
        for key in self:
            copied[key] = super().__getitem__(key)
        return copied
