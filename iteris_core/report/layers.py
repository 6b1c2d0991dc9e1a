"""The figures of a merge's layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskAtLayerReport:
    """The figures of one task at one layer.

    Args:
        residual: ``||X dW_g^T - X~ dW^T|| / ||X dW_g^T||``, 0 is perfect; with the target
            ``full_output``, the drift of the inputs counts, too. It is found from sums of squares
            that cancel, so with a float32 or half-precision network a value below 3e-4 is rounding,
            and below 1e-3 where float64 is slow.
            Where the teacher wears nothing: what the merged adapter adds on the task's inputs,
            relative to what all adapters stacked would add.
        weight: lambda, the weight of the task in the solve.
        tokens: Number of tokens that were counted.
        wears: Whether the teacher wears anything here; it decides what the residual is relative to.
        energy: ``||X dW_g^T||^2``, which lambda balances between tasks.
        gain: ``<X~ dW^T, X dW_g^T> / ||X dW_g^T||^2``, how much of what the teacher adds here is
            there, 1 is all of it; None where the teacher wears nothing.
        limited: Whether lambda was limited, see `algebra.balance`: the teacher hardly acts on these
            inputs.
    """

    task: str
    residual: float
    weight: float
    tokens: int
    wears: bool = True
    energy: float = 0.0
    gain: float | None = None
    limited: bool = False


@dataclass(frozen=True)
class LayerReport:
    """One target layer.

    Args:
        tasks: Figures of each task that counts here.
        cut: Cost of the cut to a lower rank: the part of the uncut answer's effect that is lost, 0
            to 1. The rounding to the precision that is saved does not count.
    """

    path: str
    rank: int
    tasks: tuple[TaskAtLayerReport, ...]
    cut: float = 0.0
