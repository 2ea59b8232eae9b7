"""The one exception that means "the user can mend this": its message is one line that says what, why and what to do."""

from importlib.util import find_spec


class NifiError(Exception):
    """Bad input, a missing file or a broken one. Commands print its message on one line and exit with status 1."""


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
