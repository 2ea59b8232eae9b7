"""The one exception that means "the user can mend this": its message is one line that says what, why and what to do."""

from collections.abc import Mapping
from importlib.util import find_spec


class NifiError(Exception):
    """Bad input, a missing file or a broken one. Commands print its message on one line and exit with status 1."""


def check_fields(settings: object, what: str, checks: Mapping[str, tuple[bool, str]]) -> None:
    """Refuse the first field of `settings` that is not right.

    Args:
        settings: has the fields.
        what: what messages call it.
        checks: by the field's name, whether it is right, and what was expected.

    Raises:
        NifiError: naming the field, its value and what was expected.
    """
    for name, (right, expected) in checks.items():
        if not right:
            raise NifiError(f"{what}: {name} is {getattr(settings, name)}, expected {expected}")


class CorruptFileError(NifiError):
    """A file that was truncated, damaged, or is not of the kind it was opened as."""


def require(module: str, *, extra: str, what: str) -> None:
    """Check that an optional module is installed, before anything long begins that will import it.

    Args:
        module: its name.
        extra: the extra of this package that installs it.
        what: what needs it, for the message.

    Raises:
        NifiError: if it is not installed.
    """
    if find_spec(module) is None:
        raise NifiError(f"{what} needs {module}, which is not installed: pip install 'nifi-ns[{extra}]'")
