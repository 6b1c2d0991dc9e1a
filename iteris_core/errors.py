"""The types of errors that a user's input or model can cause.

Every message names the place, what was found, what was expected and the next step.
"""


def plain(text: str) -> str:
    r"""Return a text as one line without characters that a terminal or a log would act on: names,
    keys and metadata come from strangers.

    >>> plain("a\x1b]8;;https://b\x07c\nd")
    'a\\x1b]8;;https://b\\x07c d'
    """
    return "".join(map(_plain, text))


def _plain(character: str) -> str:
    if character.isprintable():
        return character
    if character.isspace():  # spaces of all scripts, and the ends of lines
        return " "
    return character.encode("unicode_escape").decode("ascii")


# What a model, or a function of another node in it, may raise that finds other inputs or options
# than it expects. Cancelling is not among them.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class IterisError(ValueError):
    """Base of all errors that a user's input or model can cause."""

    def __str__(self) -> str:
        return plain(super().__str__())


class AdapterError(IterisError):
    """An adapter file that cannot be read, or that does not fit the model."""


class CalibrationError(IterisError):
    """Samples or tasks that the sweep cannot use, or a network that does not behave as the method
    needs.
    """


class OutOfMemoryError(CalibrationError):
    """A device that has too little memory for a single sample, or for the solve of a layer."""


class PeerError(IterisError):
    """Another process of the merge failed, or is gone."""


class SolveError(IterisError):
    """A layer whose linear system has no usable solution."""


class ConfigError(IterisError):
    """A setting outside its range."""


class SaveError(IterisError):
    """A file or folder that cannot be written."""


class NameTakenError(SaveError, FileExistsError):
    """A file or folder that is there already, and may not be replaced."""


class MissingLibraryError(IterisError):
    """A library that is not installed, and without which the rest works."""
