"""Adapter kinds that only the host knows: its own code applies them to a weight, and what it says
is taken seriously.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from ..iteris_core import AdapterError


def added_by_host(
    name: str,
    path: str,
    tensors: Mapping[str, Tensor],
    weight: Tensor,
    apply: Callable[[Tensor], Tensor | None],
) -> Tensor:
    """Return what the host adds to a weight; zero is an answer, an error in its log is not.

    Args:
        name: The file's name, for errors.
        path: The module.
        tensors: Key -> tensor, ``<path><suffix>``.
        weight: (d_out, ...), never changed.
        apply: The host's own code: weight, which it may change -> patched weight; None if it does
            not know the tensors.

    Raises:
        AdapterError: The host cannot apply the tensors; with its own words.
    """
    what = ", ".join(sorted(key.removeprefix(f"{path}.") for key in tensors))
    with logged_errors() as errors:
        try:
            patched = apply(weight.clone())
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            errors.append(f"{type(error).__name__}: {error}")
    if errors:
        raise AdapterError(
            f"{name}: ComfyUI could not apply {what} to {path!r}: {errors[0]}. "
            "The file is damaged or made for another model; download it again, or use another LoRA"
        )
    if patched is None:
        raise AdapterError(
            f"{name}: ComfyUI does not know what {what} do to {path!r}; use a plain LoRA, LoCon or "
            "LoHa"
        )
    if patched.shape != weight.shape:
        raise AdapterError(
            f"{name}: {what} make the weight of {path!r} {tuple(patched.shape)}, which is "
            f"{tuple(weight.shape)} in this model. The LoRA was trained for another model; use one "
            "for SD1.5"
        )
    return patched - weight


@contextmanager
def logged_errors() -> Iterator[list[str]]:
    """Collect this thread's logged warnings and errors: the host logs what goes wrong with a
    weight, and goes on.
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
