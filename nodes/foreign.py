"""Kinds of adapters that only the host's code can apply to a weight."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from ..iteris_core import AdapterError
from ..iteris_core.errors import FAILURES
from ..iteris_core.files.roles import WrongShape


def added_by_host(
    path: str,
    tensors: Mapping[str, Tensor],
    weight: Tensor,
    apply: Callable[[Tensor], Tensor | None],
) -> Tensor:
    """Return the delta that the host computes. Zero is accepted; an error in the host's log is
    raised.

    Args:
        path: The module.
        tensors: Key, ``<path><ending>`` -> tensor.
        weight: The base weight, (d_out, ...); it is not changed.
        apply: Function of the host: weight, which it may change -> patched weight, or None if it
            does not know the tensors.

    Raises:
        AdapterError: The host cannot apply the tensors; the message quotes the host. It begins with
            the predicate, so that the reader of the file can put the place before it.
    """
    what = ", ".join(sorted(key.removeprefix(f"{path}.") for key in tensors))
    with logged_errors() as errors:
        try:
            patched = apply(weight.clone())
        except (*FAILURES, NameError) as error:  # the latter of a GLoRA without a rank
            errors.append(f"{type(error).__name__}: {error}")
    if errors:
        raise AdapterError(
            f"has {what}, which ComfyUI could not apply: {errors[0]}. The file is damaged or made "
            "for another model; download it again, or use another LoRA"
        )
    if patched is None:
        raise AdapterError(
            f"has {what}, which ComfyUI does not know at this weight; use a plain LoRA, LoCon or "
            "LoHa"
        )
    if patched.shape != weight.shape:
        raise WrongShape(
            f"has {what}, which make a weight of {tuple(patched.shape)}, but this model's weight "
            f"there is {tuple(weight.shape)}"
        )
    return patched - weight


@contextmanager
def logged_errors() -> Iterator[list[str]]:
    """Collect the warnings and errors that this thread logs. The host logs a failure at a weight
    and goes on.
    """
    messages: list[str] = []
    thread = threading.get_ident()
    root = logging.getLogger()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                messages.append(record.getMessage())

    handler = Collector(logging.WARNING)
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level, logging.WARNING))
    try:
        yield messages
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
