"""The error of an evaluation."""

from iteris_core.errors import IterisError


class EvaluationError(IterisError):
    """Data, predictions or settings of an evaluation that cannot be used."""
