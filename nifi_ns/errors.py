"""The one exception that means "the user can mend this": its message is one line that says what, why and what to do."""


class NifiError(Exception):
    """Bad input, a missing file or a broken one. Commands print its message on one line and exit with status 1."""


class CorruptFileError(NifiError):
    """A file that was truncated, damaged, or is not of the kind it was opened as."""
