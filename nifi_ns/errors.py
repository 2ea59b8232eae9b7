"""Exceptions for errors that the user can fix. The message is one line: what is wrong, what is expected, what to do."""

from collections.abc import Mapping
from importlib.util import find_spec


class NifiError(Exception):
    """Invalid input, or a missing or damaged file. Commands print the message on one line and exit with status 1."""


def check_fields(settings: object, what: str, checks: Mapping[str, tuple[bool, str]]) -> None:
    """Check the fields of `settings`.

    Args:
        settings: an object with the fields.
        what: name of the settings in messages.
        checks: for each field name, whether the field is valid, and a description of valid values.

    Raises:
        NifiError: with the name of the first invalid field, its value and the description.
    """
    for name, (right, expected) in checks.items():
        if not right:
            raise NifiError(f"{what}: {name} is {getattr(settings, name)}, expected {expected}")


class CorruptFileError(NifiError):
    """A file that is truncated, damaged, or not of the expected kind."""


def require(module: str, *, extra: str, what: str) -> None:
    """Check that an optional module is installed, before starting long work that imports it.

    Args:
        module: name of the module.
        extra: the extra of this package that installs it.
        what: what needs the module, for the message.

    Raises:
        NifiError: if it is not installed.
    """
    if find_spec(module) is None:
        raise NifiError(f"{what} needs {module}, which is not installed: pip install 'nifi-ns[{extra}]'")
