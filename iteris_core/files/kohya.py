"""LoRA files of one model in a flat list of keys: kohya's and LyCORIS' trainers write them so, and
diffusers, PEFT and ComfyUI have other spellings of the same.

A key is a base and an ending (see `groups`). Which module a base means depends on the model, so the
caller brings the model's keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor

from ..adapters import Adapter, LowRankDelta, stack
from ..errors import AdapterError
from ..progress import Progress, nobody
from .adapter_kinds import DenseDelta, delta_of
from .families import Family, Spelling
from .groups import KOHYA_ENDINGS, PEFT_ENDINGS, Group, factors_by_key, grouped, key_of, split_key
from .metadata import base_metadata, hashes
from .model_keys import ModelKeys, WeightPart
from .recognition import family_of, other_family
from .roles import ALPHA, DIFF, DIFF_B, VECTORS, WrongShape, told_of

# --- reading ---

_KOHYA_TEXT = re.compile(r"lora_te\d*_")
_ENDS_OF_BASES = re.compile(r"(?=_lora\.|\.)")  # old diffusers keys: <base>_lora.up.weight


def parse(
    name: str,
    tensors: Mapping[str, Tensor],
    keys: ModelKeys,
    metadata: Mapping[str, str] | None = None,
    *,
    dense_delta: DenseDelta | None = None,
    progress: Progress = nobody,
) -> Adapter:
    """Return the adapter that a file's tensors (key -> tensor) describe. Keys of no module of the
    model, and vectors of other sizes than the model's, count as unmatched.

    Args:
        dense_delta: Makes deltas that have no exact factors; None: these are refused.

    Raises:
        AdapterError: The file is for another family of models, no key fits the model, tensors are
            missing, doubled, of unknown or ambiguous meaning or of a wrong shape, or weights are
            not finite.
    """
    groups, unmatched = grouped(tensors, lambda base: keys.place_of(base) is not None)
    family = keys.family
    # a file of another family can fit in part; keys that all fit may look like another family's,
    # and those that fit a model of a family without patterns of its own do
    is_doubtful = len(unmatched) > (0 if family.is_tested else len(tensors) // 2)
    found = other_family(tensors, {}, family) if is_doubtful else None
    if found is not None:
        raise AdapterError(f"{name}: {for_another(found, family)}")
    _check_others(name, groups, unmatched, keys)

    def wrong_model() -> str:
        found = other_family(tensors, metadata or {}, family)
        trained = f"The file is for {found.name}" if found else "It is for another model"
        return f"{trained}; use a LoRA for {family.name}"

    parts: dict[str, dict[WeightPart, LowRankDelta]] = {}
    vectors: dict[str, Tensor] = {}
    for done, group in enumerate(groups.values()):
        progress(done, len(groups))
        with told_of(f"{name}: {group.base!r}", wrong_model):
            part, delta, of_group, misfits = _read(group, keys, dense_delta)
            of_weight = {} if delta is None else parts.setdefault(part.path, {})
            if any(part.overlaps(other) for other in of_weight):
                raise AdapterError(
                    f"describes {part.path!r} a second time; the file is damaged. Download it again"
                )
        vectors |= of_group
        unmatched += misfits
        if delta is not None:
            of_weight[part] = delta
    if not parts and not vectors:
        found = other_family(tensors, metadata or {}, family)
        example = f", such as {next(iter(tensors))!r}," if tensors else ""
        raise AdapterError(
            f"{name}: none of its {len(tensors)} keys{example} fits this model; "
            f"{for_another(found, family, is_own=family_of(tensors) is family)}"
        )
    if family.is_tested:
        _check_family(name, groups, tensors, metadata or {}, family)
    deltas = {
        path: stack(of_weight).delta if len(of_weight) > 1 else next(iter(of_weight.values()))
        for path, of_weight in parts.items()
    }
    return Adapter(name, deltas, tuple(unmatched), dict(metadata or {}), vectors, len(tensors))


def _check_family(
    name: str,
    bases: Iterable[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    family: Family,
) -> None:
    """Refuse a file that fits the model and is for a model of another family, such as SD1.5's text
    encoder in SDXL: its metadata say so, or it has names of text encoders that this family's
    trainers do not write.

    Neither counts against keys that show this family: merges and old trainers write the wrong base
    model, and call SDXL's first text encoder like SD1.5's.
    """
    of_others = [
        base for base in bases if _KOHYA_TEXT.match(base) and not base.startswith(family.text_bases)
    ]
    shown = other_family(tensors, {}, family) if of_others else None
    said = other_family({}, metadata, family)
    if shown is not None and of_others[0].startswith(shown.text_bases):
        said = shown
    if said is not None and family_of(tensors) != family:
        raise AdapterError(f"{name}: {for_another(said, family)}")


def _check_others(
    name: str, groups: Mapping[str, Group], others: Iterable[str], keys: ModelKeys
) -> None:
    """Refuse a key that may mean several modules of the model, and one of unknown ending at a
    module that has other tensors in the file.
    """
    for key in others:
        base, _ = split_key(key) or ("", "")
        if base in keys.ambiguous:
            raise AdapterError(
                f"{name}: {key!r} does not say which text encoder of {keys.family.name} it "
                "changes. Save the LoRA again with keys that begin with text_encoder. or "
                "text_encoder_2."
            )
        starts = [] if base else [key[: end.start()] for end in _ENDS_OF_BASES.finditer(key)]
        base = next((start for start in reversed(starts) if start in groups), "")
        if base:
            raise AdapterError(
                f"{name}: {key!r} changes what the other tensors of {base!r} mean, and IterIS does "
                f"not know how: its ending {key.removeprefix(base)!r} is of an unknown kind of "
                "adapter. Use a plain LoRA, LoCon, LoHa, LoKr or DoRA"
            )


def _read(
    group: Group, keys: ModelKeys, dense_delta: DenseDelta | None
) -> tuple[WeightPart, LowRankDelta | None, dict[str, Tensor], list[str]]:
    """Return the weight or part that a group describes, the delta of the whole weight, the
    differences of vectors by parameter path, and the keys of vectors that fit no parameter.

    Raises:
        AdapterError: Begins with the predicate.
    """
    group.check()
    part = cast(WeightPart, keys.place_of(group.base))
    shape = keys.shapes.get(part.path)
    of_vectors = {role: name for role, name in VECTORS.items() if role in group.tensors}
    where = ""
    if group.base in keys.part_of_base:
        where = f" ({part})"
        shape = shape and (part.length, shape[1])
        if of_vectors:
            raise AdapterError(
                f"also changes the bias ({group.keys[next(iter(of_vectors))]!r}), but it names "
                f"only {part}, and ComfyUI applies no such change to a part. Use a LoRA without "
                "biases"
            )
    vectors = {}
    misfits = []
    for role, parameter in of_vectors.items():
        path = f"{part.path}.{parameter}"
        if tuple(group.tensors[role].shape) == (keys.vector_sizes.get(path),):
            vectors[path] = group.tensors[role].float()
        else:
            misfits.append(group.keys[role])
    make = None if dense_delta is None else partial(dense_delta, part)
    if set(group.tensors) <= {*VECTORS, ALPHA}:
        return part, None, vectors, misfits
    if shape is None:
        why = "is neither Linear nor a convolution without groups"
        raise AdapterError(f"changes a layer that {keys.refused.get(part.path, why)}")
    try:
        delta = delta_of(group.tensors, shape, make)
    except WrongShape as error:
        raise WrongShape(f"{error}{where}") from error
    return part, part.in_weight(delta, keys.shapes[part.path][0]), vectors, misfits


def for_another(found: Family | None, family: Family, *, is_own: bool = False) -> str:
    """Return why a file does not fit a model of a family, and what to do.

    Args:
        found: The file's family, if it is another one.
        is_own: Whether the file's keys show the model's own family.
    """
    if is_own:
        return (
            f"it is for {family.name}, but in names that neither IterIS nor ComfyUI knows. Save it "
            "from its trainer with ComfyUI's or kohya's names, or ask for them at the pack's issue "
            "tracker"
        )
    if found is None:
        return f"it may be for another model, or no LoRA at all. Choose a LoRA for {family.name}"
    return (
        f"this file is for {found.name}, the model is {family.name}; choose a LoRA for "
        f"{family.name}"
    )


# --- writing ---


def to_tensors(
    adapter: Adapter,
    base_of_module: Mapping[str, str],
    kernels: Mapping[str, tuple[int, ...]] | None = None,
    *,
    whole: bool = False,
    style: Spelling = "kohya",
) -> dict[str, Tensor]:
    """Return an adapter as ``<base>.lora_up.weight``, ``<base>.lora_down.weight`` and
    ``<base>.alpha`` = rank, or in the style ``comfy`` as ``<base>.lora_B.weight`` and
    ``<base>.lora_A.weight`` without alphas, which diffusers refuses in some families.

    Alphas are omitted where layers have different ranks, which means the same. diffusers would give
    differing alphas of attention layers to other modules.

    Args:
        adapter: The adapter, in the precision to save.
        kernels: Module path -> kernel of convolutions, whose factors have as many dimensions more.
        whole: Whether deltas whose factors are no smaller than the weight are written as
            ``<base>.diff`` instead.

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
    endings = KOHYA_ENDINGS if style == "kohya" else PEFT_ENDINGS
    one_rank = len({delta.rank for delta in adapter.deltas.values()}) == 1
    for path, delta in adapter.deltas.items():
        base = base_of_module[path]
        kernel = (kernels or {}).get(path, ())
        if whole and delta.is_oversized:
            weight = delta.to(dtype=torch.float32).dense().to(delta.up.dtype)
            tensors[key_of(base, DIFF)] = weight.reshape(len(weight), -1, *kernel)
            continue
        tensors |= factors_by_key(base, delta, kernel, endings)
        if one_rank and style == "kohya":
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
    """Return the tensors and the metadata of an adapter's file. With more strings for the file it
    also gets the hashes that other programs recognise it by. See `to_tensors`.
    """
    style = keys.family.saved_as
    tensors = to_tensors(adapter, keys.base_of_module, keys.kernels, whole=whole, style=style)
    content = metadata_of(adapter, keys.family, whole=whole)
    if metadata is not None:
        content |= base_metadata(keys.family, keys.prediction_type) | dict(metadata)
        content |= hashes(tensors, content)
    return tensors, content


def metadata_of(adapter: Adapter, family: Family, *, whole: bool = False) -> dict[str, str]:
    """Return the metadata that other programs recognise a LoRA by; see `to_tensors`."""
    ranks = (delta.rank for delta in adapter.deltas.values() if not (whole and delta.is_oversized))
    rank = str(max(ranks, default=0))
    metadata = {
        "ss_base_model_version": family.base_version,
        "ss_network_module": family.network_module,
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture and f"{family.architecture}/lora",
        "modelspec.title": adapter.name,
    }
    return {key: value for key, value in metadata.items() if value}
