"""Several processes that share the work of one merge, through torch.distributed.

Every process is given the same adapters, tasks and settings, and measures a share of the samples.
The statistics of a layer are sums over samples, so they are added up once per layer. Then every
process solves the same system, and its rows go on wearing the same answer.

Processes that wait for one that has failed would wait for ever. So each says whether it is well
before anything is added up.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.utils._pytree import tree_map_only

from .devices import moved
from .errors import ConfigError, OutOfMemoryError, PeerError
from .memory import is_out_of_memory

T = TypeVar("T")
Failure = TypeVar("Failure", bound=BaseException)
_is_alone: ContextVar[bool] = ContextVar("iteris_alone", default=False)
# Mark of an error that the other processes know of.
_TOLD = "iteris_told"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this process merge by itself, also inside a process group that is for something else."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


@dataclass(frozen=True)
class Processes:
    """The processes of a merge, as one of them sees them."""

    number: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Return the processes of torch's process group; this one alone where there is none, and
        inside `alone`.
        """
        if _is_alone.get() or not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.number == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's share of items that all of them have; shares differ by one at most.

        >>> Processes(1, 3).share("abcdefg")
        ['b', 'e']
        """
        return list(items[self.number :: self.size])

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Add tensors up over all processes, in place; they are packed into one float64 vector.

        Raises:
            PeerError: Another process failed before it came here.
        """
        if self.is_alone or not tensors:
            return
        self._settle()
        device = _device()
        packed = torch.cat([moved(t.reshape(-1), device, torch.float64) for t in tensors])
        with _connected():
            distributed.all_reduce(packed)
        start = 0
        for tensor in tensors:
            part = packed[start : start + tensor.numel()]
            tensor.copy_(moved(part, tensor.device, tensor.dtype).reshape(tensor.shape))
            start += tensor.numel()

    def agree(self, is_so: Tensor) -> bool:
        """Whether something is so in every process; waits for the tensor's device.

        Raises:
            PeerError: Another process failed before it came here.
        """
        against = moved(~is_so, "cpu", torch.float64)
        self.add_up([against])
        return not against.item()

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all processes, in their order before `share`; their tensors are on
        the CPU.

        Raises:
            PeerError: Another process failed before it came here.
        """
        if self.is_alone:
            return list(items)
        self._settle()
        shares: list[list[T]] = [[] for _ in range(self.size)]
        on_cpu = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), list(items))
        with _connected():
            distributed.all_gather_object(shares, on_cpu)
        count = sum(map(len, shares))
        return [shares[i % self.size][i // self.size] for i in range(count)]

    def check_same(self, what: str, text: str) -> None:
        """Refuse to go on where processes were given different things.

        Args:
            text: A text that says all of it.

        Raises:
            ConfigError: It differs between processes.
            PeerError: Another process failed before it came here.
        """
        digest = hashlib.sha256(text.encode()).hexdigest()
        others = [other for other, found in enumerate(self.gather([digest])) if found != digest]
        if others:
            raise ConfigError(
                f"process {self.number} of {self.size} was given other {what} than process "
                f"{others[0]}; start all processes of a merge with the same files and settings"
            )

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run a part of the work that all processes run; what fails in one fails in all.

        Raises:
            PeerError: Another process failed.
            OutOfMemoryError: This one ran out of memory while there are others, which would have to
                try again, too.
        """
        try:
            yield
        except BaseException as error:
            if self.is_alone or getattr(error, _TOLD, False):
                raise
            with contextlib.suppress(PeerError):  # what is lost is lost
                self._settle(failed=True)
            if isinstance(error, Exception) and is_out_of_memory(error):
                full = OutOfMemoryError(
                    f"process {self.number} of {self.size} ran out of memory, and only a process "
                    "that merges alone tries smaller calls. Start the merge in one process, or on "
                    "devices with more memory"
                )
                raise _told(full) from error
            _told(error)
            raise
        if not self.is_alone:
            self._settle()

    def _settle(self, *, failed: bool = False) -> None:
        """Tell the other processes whether this one has failed, and learn whether they have."""
        failures = torch.tensor(int(failed), device=_device())
        with _connected():
            distributed.all_reduce(failures)
        if failures:
            raise _told(
                PeerError(
                    f"process {self.number} of {self.size} ended because another one failed; its "
                    "error is above or below this line"
                )
            )


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Turn torch's error of a lost connection into ours."""
    try:
        yield
    except RuntimeError as error:
        raise _told(
            PeerError(
                f"the connection to the other processes of this merge is lost ({error}); one of "
                "them has ended. Look at its last lines"
            )
        ) from error


def _told(error: Failure) -> Failure:
    """Mark an error that the other processes know of."""
    setattr(error, _TOLD, True)
    return error


def _device() -> torch.device:
    """Return the device of what is sent."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
