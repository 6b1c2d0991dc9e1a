"""Gradients through a model that its host made only to draw: its weights and rows are of inference
mode, its blocks overwrite what they read, and its activations are too large to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import CalibrationError


def usable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd can keep."""
    return tensor.clone() if tensor.is_inference() else tensor


def mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return values after changing every tensor in them, also in lists, dicts and dataclasses. An
    object that occurs several times is changed once.
    """
    changed: dict[int, Any] = {}

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, dict):
            return {name: of(item) for name, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(of, value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(of, value))
        if not is_dataclass(value) or isinstance(value, type):
            return value
        if id(value) not in changed:
            made = changed[id(value)] = copy(value)
            for name in vars(value):
                object.__setattr__(made, name, of(getattr(value, name)))  # it may be frozen
        return changed[id(value)]

    return of(values)


# Addresses of memory.
Addresses = frozenset[int]


@contextmanager
def frozen(modules: Mapping[str, nn.Module]) -> Iterator[Addresses]:
    """Let autograd read the network's weights, without gradients for them. It cannot keep tensors
    that a host made in inference mode for a backward pass, but it can keep others in their memory.
    A host may also have weights besides a module's own, such as copies on the device.

    Yields:
        Addresses of the modules' own weights, which stay there.
    """
    replaced: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []
    kept: set[int] = set()
    try:
        for module in modules.values():
            for own, name, tensor in _tensors_of(module):
                if own is not vars(module):
                    kept.update(_addresses(tensor))
                if tensor.is_inference() or tensor.requires_grad:
                    same = _same_memory(tensor, is_parameter=own is module._parameters)
                    replaced.append((own, name, tensor, same))
                    own[name] = same
        yield frozenset(kept - {0})
    finally:
        for own, name, tensor, same in replaced:
            if own.get(name) is same:  # a host may have made a new one
                own[name] = tensor


def _tensors_of(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Yield a module's own tensors, each with the dict that has it, and its name there."""
    owners: list[dict[str, Any]] = [module._parameters, module._buffers, vars(module)]
    for own in owners:
        for name, tensor in list(own.items()):
            if isinstance(tensor, Tensor):
                yield own, name, tensor


def _same_memory(tensor: Tensor, *, is_parameter: bool) -> Tensor:
    with torch.no_grad():
        same = _usable_at(tensor) if tensor.is_inference() else tensor.detach()
    if is_parameter and not isinstance(same, nn.Parameter):
        same = nn.Parameter(same, requires_grad=False)
    noted = vars(same)  # by a host, too
    noted.update({name: value for name, value in vars(tensor).items() if name not in noted})
    return same


def _usable_at(tensor: Tensor) -> Tensor:
    """Return a tensor in the same memory that is not of inference mode."""
    if hasattr(tensor, "__tensor_flatten__"):  # without memory of its own, such as quantised ones
        kind: Any = type(tensor)
        names, context = tensor.__tensor_flatten__()
        parts = {name: _usable_at(getattr(tensor, name)) for name in names}
        whole: Tensor = kind.__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())
        return whole
    with torch._C.DisableTorchFunctionSubclass():
        same = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        same.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return same if type(tensor) in (Tensor, nn.Parameter) else same.as_subclass(type(tensor))


def _addresses(tensor: Tensor) -> Iterator[int]:
    """Yield where a tensor's memory is."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _addresses(getattr(tensor, name))
    else:
        yield tensor.untyped_storage().data_ptr()


@contextmanager
def blocks_called(
    modules: Mapping[str, nn.Module], paths: Collection[str]
) -> Iterator[list[nn.Module]]:
    """Find the blocks that hold layers: the outermost items of lists of modules that are called
    inside the context. The list that it yields is filled when it ends.
    """
    lists = {path for path, m in modules.items() if isinstance(m, (nn.ModuleList, nn.Sequential))}
    items = {}
    for path in paths:
        names = path.split(".")
        for end in range(1, len(names) - 1):
            if ".".join(names[:end]) in lists:
                items[".".join(names[: end + 1])] = modules[".".join(names[: end + 1])]
    reached: dict[int, nn.Module] = {}

    def remember(module: nn.Module, _: Any) -> None:
        reached[id(module)] = module

    handles = [item.register_forward_pre_hook(remember) for item in items.values()]
    found: list[nn.Module] = []
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    inner = {id(m) for item in reached.values() for m in item.modules() if m is not item}
    found += [item for number, item in reached.items() if number not in inner]


@contextmanager
def recomputed(blocks: Sequence[nn.Module], weights: Addresses) -> Iterator[None]:
    """Let blocks keep no activations for the backward pass, but run again in it.

    Args:
        weights: See `kept_as_copies`.
    """
    before = [(block, vars(block).get("forward")) for block in blocks]
    for block in blocks:
        block.forward = _recomputing(block.forward, weights)
    try:
        yield
    finally:
        for block, own in before:
            del block.forward
            if own is not None:
                block.forward = own


def _recomputing(forward: Callable[..., Any], weights: Addresses) -> Callable[..., Any]:
    """Return a block's forward that runs again in the backward pass."""
    always = torch.zeros((), requires_grad=True)  # so that a block's own factors get a gradient

    def run(*args: Any, **named: Any) -> Any:
        tensors: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            tensors.append(usable(tensor))
            return tensor

        def on_copies(zero: Tensor, *given: Tensor) -> Any:
            following = iter(given)
            # blocks may write into what they read
            args_, named_ = mapped((args, named), lambda _: next(following).clone())
            with kept_as_copies(weights):
                answer = forward(*args_, **named_)
            return mapped(answer, lambda tensor: _with_gradient(tensor, zero))

        # also those in objects of the model's own: a gradient flows through each
        mapped((args, named), note)
        # not the newer kind of checkpoint, which does not see what was overwritten
        return checkpoint(on_copies, always, *tensors, use_reentrant=True, preserve_rng_state=False)

    return run


def _with_gradient(tensor: Tensor, zero: Tensor) -> Tensor:
    """Return what a block answers, with a gradient at least to `zero`: a checkpoint needs one."""
    if tensor.is_floating_point() and not tensor.requires_grad:
        return tensor + zero.to(tensor)
    return tensor


def kept_as_copies(weights: Addresses) -> AbstractContextManager[Any]:
    """Let autograd keep copies of activations, since models overwrite them; and of weights that the
    host has loaded for this call, since it loads the next layer's into the same memory.

    Args:
        weights: Addresses of weights that stay as they are, so that no copies are needed.
    """

    def keep(tensor: Tensor) -> tuple[Tensor, int]:
        is_factor = tensor.is_leaf and tensor.requires_grad
        if not is_factor and not weights.issuperset(_addresses(tensor)):
            tensor = tensor.detach().clone()
        return tensor, tensor._version

    def kept(found: tuple[Tensor, int]) -> Tensor:
        tensor, version = found
        if tensor._version != version:
            raise CalibrationError(
                "this model overwrites what its gradient needs, so that no LoRA on it can be "
                "polished. Switch the polish off"
            )
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(keep, kept)
