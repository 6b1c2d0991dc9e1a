"""LoRA files of one model in a flat list of keys: kohya's and LyCORIS' trainers write them so, and
diffusers, PEFT and ComfyUI have other spellings of the same.

A key is a base and an ending (see `groups`). Which module a base means depends on the model, so the
caller brings the model's keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ..adapters import Adapter, LowRankDelta
from ..errors import AdapterError
from ..progress import Progress, nobody
from .families import family_of_keys
from .groups import Group, grouped, key_of, split_key
from .kinds import (
    ALPHA,
    DIFF,
    DIFF_B,
    DOWN,
    UP,
    VECTORS,
    DenseDelta,
    NotMergeable,
    WrongShape,
    delta_of,
)
from .metadata import hashes
from .model_keys import ModelKeys


def parse(
    name: str,
    tensors: Mapping[str, Tensor],
    keys: ModelKeys,
    metadata: Mapping[str, str] | None = None,
    *,
    dense_delta: DenseDelta | None = None,
    progress: Progress = nobody,
) -> Adapter:
    """Return the adapter that a file's tensors describe.

    Args:
        name: Name of the file, for reports and errors.
        tensors: The file's content, key -> tensor.
        keys: The model's keys. Vectors of other sizes than the model's count as unmatched.
        metadata: The file's metadata.
        dense_delta: Function that makes deltas without exact factors, such as those of a LoKr or a
            DoRA; None: these are refused.
        progress: Listener for (modules read, modules in all); may raise to cancel.

    Raises:
        AdapterError: No key fits the model, tensors are missing, doubled, of unknown meaning or of
            a wrong shape, or weights are not finite.
    """
    groups, unmatched = grouped(tensors, keys.module_of_base.__contains__)
    _check_others(name, groups, unmatched)
    deltas: dict[str, LowRankDelta] = {}
    vectors: dict[str, Tensor] = {}
    for done, group in enumerate(groups.values()):
        progress(done, len(groups))
        path = keys.module_of_base[group.base]
        fitting, misfits = _vectors(path, group, keys.vector_sizes)
        vectors |= fitting
        unmatched += misfits
        delta = _delta(name, path, group, keys, dense_delta)
        if delta is None:
            continue
        if path in deltas:
            raise AdapterError(
                f"{name}: {path!r} is described twice, the second time as {group.base!r}; the file "
                "is damaged"
            )
        deltas[path] = delta
    if not deltas and not vectors:
        raise AdapterError(f"{name}: {_no_key_fits(list(tensors))}")
    return Adapter(name, deltas, tuple(unmatched), dict(metadata or {}), vectors)


def _check_others(name: str, groups: Mapping[str, Group], others: Iterable[str]) -> None:
    """Refuse a key of unknown ending at a module that has other tensors in the file.

    Raises:
        AdapterError: There is one.
    """
    for key in others:
        base = next((start for start in _starts(key) if start in groups), None)
        if base is not None and split_key(key) is None:
            raise AdapterError(
                f"{name}: {key!r} changes what the other tensors of {base!r} mean, and IterIS does "
                f"not know how: its ending {key.removeprefix(base)!r} is of no known kind of "
                "adapter. Use a plain LoRA, LoCon, LoHa, LoKr or DoRA"
            )


def _starts(key: str) -> Iterator[str]:
    """Yield the possible bases of a key: its part before each dot, longest first."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key
        if key.endswith("_lora"):  # old diffusers keys: <base>_lora.up.weight
            yield key.removesuffix("_lora")


def _vectors(
    path: str, group: Group, sizes: Mapping[str, int]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return parameter path -> difference of a bias or a norm's weight, and the keys of vectors
    without a parameter of their size.
    """
    fitting = {}
    misfits = []
    for role, parameter in VECTORS.items():
        if role not in group.tensors:
            continue
        vector = group.tensors[role]
        if sizes.get(f"{path}.{parameter}") == vector.numel():
            fitting[f"{path}.{parameter}"] = vector.float()
        else:
            misfits.append(group.keys[role])
    return fitting, misfits


def _delta(
    name: str, path: str, group: Group, keys: ModelKeys, dense_delta: DenseDelta | None
) -> LowRankDelta | None:
    """Return one module's delta; None if there are only vectors. Errors get their place here."""
    try:
        group.check_single()
        return delta_of(path, group.tensors, keys.shapes.get(path), dense_delta)
    except NotMergeable as error:
        why = f"changes a layer that {keys.refused[path]}" if path in keys.refused else error
        raise AdapterError(f"{name}: {group.base!r} {why}") from error
    except WrongShape as error:
        raise AdapterError(
            f"{name}: {group.base!r} {error}. The LoRA was trained for another model; use one for "
            "SD1.5"
        ) from error
    except AdapterError as error:
        raise AdapterError(f"{name}: {group.base!r} {error}") from error


def _no_key_fits(keys: list[str]) -> str:
    family = family_of_keys(keys)
    guess = (
        f"it looks like a LoRA for {family}"
        if family
        else "it may be for another model, or no LoRA at all"
    )
    example = f", such as {keys[0]!r}" if keys else ""
    return (
        f"none of its {len(keys)} keys{example} fits this model; {guess}. Choose a LoRA for SD1.5"
    )


def to_tensors(
    adapter: Adapter,
    base_of_module: Mapping[str, str],
    kernels: Mapping[str, tuple[int, int]] | None = None,
    *,
    whole: bool = False,
) -> dict[str, Tensor]:
    """Return an adapter as ``<base>.lora_up.weight``, ``<base>.lora_down.weight`` and
    ``<base>.alpha`` = rank.

    Alphas are omitted where layers have different ranks, which means the same. diffusers would give
    differing alphas of attention layers to other modules.

    Args:
        adapter: The adapter, in the precision in which it is to be saved.
        base_of_module: Module path -> the base of its keys.
        kernels: Module path -> (height, width) of convolutions, whose factors have four dimensions.
        whole: Whether deltas whose factors are no smaller than the weight are written as
            ``<base>.diff`` instead.

    Returns:
        Key -> contiguous tensor, as safetensors needs it.

    Raises:
        AdapterError: A module has no base.
    """
    modules = [*adapter.deltas, *(parameter.rpartition(".")[0] for parameter in adapter.vectors)]
    nameless = [path for path in modules if path not in base_of_module]
    if nameless:
        raise AdapterError(
            f"{adapter.name}: {nameless[0]!r} has no key name under which other programs would "
            f"find it, so it cannot be saved ({len(nameless)} such modules). Leave it out of the "
            "adapter"
        )
    tensors: dict[str, Tensor] = {}
    one_rank = len({delta.rank for delta in adapter.deltas.values()}) == 1
    for path, delta in adapter.deltas.items():
        base = base_of_module[path]
        kernel = (kernels or {}).get(path, ())
        if whole and delta.is_oversized:
            weight = delta.to(dtype=torch.float32).dense().to(delta.up.dtype)
            tensors[key_of(base, DIFF)] = weight.reshape(len(weight), -1, *kernel)
            continue
        tensors[key_of(base, UP)] = delta.up.reshape(*delta.up.shape, *(1 for _ in kernel))
        tensors[key_of(base, DOWN)] = delta.down.reshape(delta.rank, -1, *kernel)
        if one_rank:
            tensors[key_of(base, ALPHA)] = torch.tensor(float(delta.rank))
    for parameter, vector in adapter.vectors.items():
        path, _, kind = parameter.rpartition(".")
        role = DIFF_B if kind == "bias" else DIFF
        tensors[key_of(base_of_module[path], role)] = vector
    return {key: tensor.contiguous() for key, tensor in tensors.items()}


def file_of(
    adapter: Adapter,
    keys: ModelKeys,
    metadata: Mapping[str, str] | None = None,
    *,
    whole: bool = False,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of an adapter's file, with the hashes by which other
    programs recognise it.

    Args:
        adapter: The adapter, in the precision in which it is to be saved.
        keys: Names of the model's modules.
        metadata: More strings for the file; None: only those that the tensors need, and no hashes.
        whole: See `to_tensors`.

    Raises:
        AdapterError: See `to_tensors`.
    """
    tensors = to_tensors(adapter, keys.base_of_module, keys.kernels, whole=whole)
    content = metadata_of(adapter, whole=whole)
    if metadata is not None:
        content |= metadata
        content |= hashes(tensors, content)
    return tensors, content


def metadata_of(adapter: Adapter, *, whole: bool = False) -> dict[str, str]:
    """Return the metadata by which other programs recognise a LoRA of SD1.5.

    Args:
        adapter: The adapter that is saved.
        whole: Whether large deltas are written without factors; see `to_tensors`.
    """
    ranks = (delta.rank for delta in adapter.deltas.values() if not (whole and delta.is_oversized))
    rank = str(max(ranks, default=0))
    return {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": adapter.name,
    }
