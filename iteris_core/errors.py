"""The types of errors that a user's input or model can cause.

Every message names the place, what stands there, what was expected and the next step.
"""


class IterisError(ValueError):
    """Base of all errors that a user's input or model can cause."""


class AdapterError(IterisError):
    """An adapter file that cannot be read, or that does not fit the model."""


class CalibrationError(IterisError):
    """Samples or tasks that the sweep cannot use, or a network that does not behave as the method
    needs.
    """


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


class EvaluationError(IterisError):
    """Data, predictions or settings of an evaluation that cannot be used."""
