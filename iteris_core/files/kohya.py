"""LoRA files of one model in a flat list of keys: kohya's and LyCORIS' trainers write them so, and
diffusers, PEFT and ComfyUI have other spellings of the same.

A key is a base and an ending (see `groups`). Which module a base means depends on the model, so the
caller brings the model's keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..adapters import Adapter, LowRankDelta, stack
from ..errors import AdapterError
from ..layers import sorted_layers
from ..progress import Progress, nobody
from .families import Family, Spelling, family_of, other_family
from .kinds import (
    ALPHA,
    DIFF,
    DIFF_B,
    DOWN,
    UP,
    VECTORS,
    DenseDelta,
    Group,
    NotMergeable,
    WrongShape,
    delta_of,
    foreign_kind,
    grouped,
    key_of,
    peft_key_of,
    split_key,
)
from .metadata import base_metadata, hashes
from .parts import WeightPart

Keys = TypeVar("Keys", bound="ModelKeys")


@dataclass(frozen=True)
class ModelKeys:
    """Names and sizes of one model's modules; keeps no weights alive.

    Args:
        family: The family of base models to which the model belongs.
        module_of_base: Base of a key -> module path, in every spelling.
        base_of_module: Module path -> the base of its keys in saved files, in the style of the
            family.
        shapes: Module path -> (d_out, d_in) of the layers that can be merged.
        refused: Module path -> why the layer cannot be merged; begins with the predicate.
        kernels: Module path -> (height, width) of the convolutions.
        vector_sizes: Path of a bias or of a norm's weight -> its size.
        part_of_base: Base of a key -> the part of a fused weight that it names.
        ambiguous: Bases that may mean several modules; files with them are refused.
        prediction_type: What the model predicts, as ModelSpec names it (``epsilon`` or ``v``);
            empty: a flow model, for which it has no name.
    """

    family: Family
    module_of_base: Mapping[str, str]
    base_of_module: Mapping[str, str]
    shapes: Mapping[str, tuple[int, int]]
    kernels: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    vector_sizes: Mapping[str, int] = field(default_factory=dict)
    part_of_base: Mapping[str, WeightPart] = field(default_factory=dict)
    ambiguous: frozenset[str] = frozenset()
    prediction_type: str = "epsilon"
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls: type[Keys],
        family: Family,
        modules: Mapping[str, nn.Module],
        module_of_base: Mapping[str, str],
        base_of_module: Mapping[str, str],
        **more: Any,
    ) -> Keys:
        """Return the keys of a model with these modules.

        Args:
            family: See the class.
            modules: Module path -> module, from which the sizes are read.
            module_of_base: See the class.
            base_of_module: See the class.
            more: More fields of the class.
        """
        shapes, refused = sorted_layers(modules)
        return cls(
            family=family,
            module_of_base=module_of_base,
            base_of_module=base_of_module,
            shapes=shapes,
            kernels=layer_kernels(modules),
            vector_sizes=_vector_sizes(modules),
            refused=refused,
            **more,
        )

    def place_of(self, base: str) -> WeightPart | None:
        """Return the weight, or the part of one, that a base names; None if the model has none."""
        if base in self.part_of_base:
            return self.part_of_base[base]
        path = self.module_of_base.get(base)
        return None if path is None else WeightPart(path, 0, self.shapes.get(path, (0, 0))[0])

    def weight_shape(self, path: str) -> tuple[int, ...]:
        """Return the shape of a layer's weight tensor: four numbers for a convolution."""
        d_out, d_in = self.shapes[path]
        if path not in self.kernels:
            return d_out, d_in
        height, width = self.kernels[path]
        return d_out, d_in // (height * width), height, width


def layer_kernels(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Return module path -> (height, width) of every convolution."""
    kernels = {}
    for path, module in modules.items():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            kernels[path] = (height, width)
    return kernels


def _vector_sizes(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    # a packed parameter has other numbers of elements and sides than the shape that it shows
    return {
        f"{path}.{name}": parameter.shape[0]
        for path, module in modules.items()
        for name, parameter in module.named_parameters(recurse=False)
        if len(parameter.shape) == 1
    }


_KOHYA_TEXT = re.compile(r"lora_te\d*_")


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
        AdapterError: The file is for another family of models, no key fits the model, tensors are
            missing, doubled, of unknown or ambiguous meaning or of a wrong shape, or weights are
            not finite.
    """
    groups, unmatched = grouped(tensors, lambda base: keys.place_of(base) is not None)
    foreign = foreign_kind(unmatched)
    if foreign:
        raise AdapterError(f"{name}: {foreign}")
    # a file of another family can fit in part; keys that all fit may look like another family's
    found = other_family(tensors, {}, keys.family) if unmatched else None
    if found is not None:
        raise AdapterError(f"{name}: {_for_another(found, keys.family)}")
    _check_others(name, groups, unmatched)
    _check_unambiguous(name, unmatched, keys)
    parts: dict[str, dict[WeightPart, LowRankDelta]] = {}
    vectors: dict[str, Tensor] = {}
    for done, group in enumerate(groups.values()):
        progress(done, len(groups))
        try:
            part, delta, of_group, misfits = _read(group, keys, dense_delta)
        except WrongShape as error:
            raise AdapterError(
                f"{name}: {group.base!r} {error}. {_wrong_model(tensors, metadata, keys.family)}"
            ) from error
        except AdapterError as error:
            raise AdapterError(f"{name}: {group.base!r} {error}") from error
        vectors |= of_group
        unmatched += misfits
        if delta is None:
            continue
        of_weight = parts.setdefault(part.path, {})
        if any(part.overlaps(other) for other in of_weight):
            raise AdapterError(
                f"{name}: {part.path!r} is described twice, the second time as {group.base!r}; the "
                "file is damaged"
            )
        of_weight[part] = delta
    if not parts and not vectors:
        raise AdapterError(f"{name}: {_no_key_fits(tensors, metadata, keys.family)}")
    _check_family(name, groups, tensors, metadata or {}, keys.family)
    deltas = {path: _together(of_weight) for path, of_weight in parts.items()}
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

    Raises:
        AdapterError: It is for another family, and its keys do not show this one.
    """
    of_others = [
        base for base in bases if _KOHYA_TEXT.match(base) and not base.startswith(family.text_bases)
    ]
    shown = other_family(tensors, {}, family) if of_others else None
    said = other_family({}, metadata, family)
    if shown is not None and of_others[0].startswith(shown.text_bases):
        said = shown
    if said is not None and family_of(tensors) != family:
        raise AdapterError(f"{name}: {_for_another(said, family)}")


def _check_others(name: str, groups: Mapping[str, Group], others: Iterable[str]) -> None:
    """Refuse a key of unknown ending at a module that has other tensors in the file.

    Raises:
        AdapterError: There is one.
    """
    longest = max(map(len, groups), default=0)
    for key in others:
        if split_key(key) is not None:
            continue
        base = next((start for start in _starts(key, longest) if start in groups), None)
        if base is not None:
            raise AdapterError(
                f"{name}: {key!r} changes what the other tensors of {base!r} mean, and IterIS does "
                f"not know how: its ending {key.removeprefix(base)!r} is of an unknown kind of "
                "adapter. Use a plain LoRA, LoCon, LoHa, LoKr or DoRA"
            )


def _starts(key: str, longest: int) -> Iterator[str]:
    """Yield the possible bases of a key: its part before each dot, longest first.

    Args:
        key: The key.
        longest: Letters of the longest base.
    """
    end = key.rfind(".", 0, longest + len("_lora.") + 1)
    while end > 0:
        yield key[:end]
        if key.endswith("_lora", 0, end):  # old diffusers keys: <base>_lora.up.weight
            yield key[: end - len("_lora")]
        end = key.rfind(".", 0, end)


def _vectors(
    path: str, group: Group, sizes: Mapping[str, int]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return parameter path -> difference of a bias or a norm's weight, and the keys of vectors
    without a parameter of their size.
    """
    group.check_vectors()
    fitting = {}
    misfits = []
    for role, parameter in VECTORS.items():
        if role not in group.tensors:
            continue
        vector = group.tensors[role]
        if tuple(vector.shape) == (sizes.get(f"{path}.{parameter}"),):
            fitting[f"{path}.{parameter}"] = vector.float()
        else:
            misfits.append(group.keys[role])
    return fitting, misfits


def _read(
    group: Group, keys: ModelKeys, dense_delta: DenseDelta | None
) -> tuple[WeightPart, LowRankDelta | None, dict[str, Tensor], list[str]]:
    """Return the weight or part that a group describes, the delta of the whole weight, the
    differences of vectors, and the keys of vectors that fit no parameter.

    Raises:
        AdapterError: Begins with the predicate.
    """
    group.check_single()
    part = cast(WeightPart, keys.place_of(group.base))
    shape = keys.shapes.get(part.path)
    if group.base in keys.part_of_base:
        _check_no_vectors(part, group)
        shape = shape and (part.length, shape[1])
    vectors, misfits = _vectors(part.path, group, keys.vector_sizes)
    make = None if dense_delta is None else partial(dense_delta, part)
    try:
        delta = delta_of(group.tensors, shape, make)
    except NotMergeable as error:
        if part.path not in keys.refused:
            raise
        raise AdapterError(f"changes a layer that {keys.refused[part.path]}") from error
    except WrongShape as error:
        where = f" ({part})" if group.base in keys.part_of_base else ""
        raise WrongShape(f"{error}{where}") from error
    if delta is not None:
        delta = part.in_weight(delta, keys.shapes[part.path][0])
    return part, delta, vectors, misfits


def _together(of_weight: Mapping[WeightPart, LowRankDelta]) -> LowRankDelta:
    return stack(of_weight).delta if len(of_weight) > 1 else next(iter(of_weight.values()))


def _check_no_vectors(part: WeightPart, group: Group) -> None:
    """Refuse the difference of a bias or of a norm at a part of a weight.

    Raises:
        AdapterError: Begins with the predicate.
    """
    role = next((role for role in VECTORS if role in group.tensors), None)
    if role is not None:
        raise AdapterError(
            f"also changes the bias ({group.keys[role]!r}), but it names only {part}, and ComfyUI "
            "applies no such change to a part. Use a LoRA without biases"
        )


def _check_unambiguous(name: str, others: Iterable[str], keys: ModelKeys) -> None:
    """Refuse a key that may mean several modules of the model.

    Raises:
        AdapterError: There is one.
    """
    for key in others:
        base, _ = split_key(key) or ("", "")
        if base in keys.ambiguous:
            raise AdapterError(
                f"{name}: {key!r} does not say which text encoder of {keys.family.name} it "
                "changes. Save the LoRA again with keys that begin with text_encoder. or "
                "text_encoder_2."
            )


def _for_another(found: Family, family: Family) -> str:
    return (
        f"this file is for {found.name}, the model is {family.name}; choose a LoRA for "
        f"{family.name}"
    )


def _wrong_model(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, family: Family
) -> str:
    """Return the likely cause of a wrong shape, and the next step."""
    found = other_family(tensors, metadata or {}, family)
    if found is None:
        return f"The LoRA was trained for another model; use one for this {family.name} model"
    return f"The file is for {found.name}, the model is {family.name}; use one for {family.name}"


def _no_key_fits(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, family: Family
) -> str:
    found = other_family(tensors, metadata or {}, family)
    guess = (
        _for_another(found, family)
        if found is not None
        else "it may be for another model, or no LoRA at all. Choose a LoRA for " + family.name
    )
    example = f", such as {next(iter(tensors))!r}," if tensors else ""
    return f"none of its {len(tensors)} keys{example} fits this model; {guess}"


def to_tensors(
    adapter: Adapter,
    base_of_module: Mapping[str, str],
    kernels: Mapping[str, tuple[int, int]] | None = None,
    *,
    whole: bool = False,
    style: Spelling = "kohya",
) -> dict[str, Tensor]:
    """Return an adapter as ``<base>.lora_up.weight``, ``<base>.lora_down.weight`` and
    ``<base>.alpha`` = rank, or as ``<base>.lora_B.weight`` and ``<base>.lora_A.weight``.

    Alphas are omitted where layers have different ranks, which means the same. diffusers would give
    differing alphas of attention layers to other modules. The style ``comfy`` has none, because
    diffusers refuses them in some families.

    Args:
        adapter: The adapter, in the precision in which it is to be saved.
        base_of_module: Module path -> the base of its keys.
        kernels: Module path -> (height, width) of convolutions, whose factors have four dimensions.
        whole: Whether deltas whose factors are no smaller than the weight are written as
            ``<base>.diff`` instead.
        style: Style of the endings.

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
    name_of = key_of if style == "kohya" else peft_key_of
    one_rank = len({delta.rank for delta in adapter.deltas.values()}) == 1
    for path, delta in adapter.deltas.items():
        base = base_of_module[path]
        kernel = (kernels or {}).get(path, ())
        if whole and delta.is_oversized:
            weight = delta.to(dtype=torch.float32).dense().to(delta.up.dtype)
            tensors[key_of(base, DIFF)] = weight.reshape(len(weight), -1, *kernel)
            continue
        tensors[name_of(base, UP)] = delta.up.reshape(*delta.up.shape, *(1 for _ in kernel))
        tensors[name_of(base, DOWN)] = delta.down.reshape(delta.rank, -1, *kernel)
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
    style = keys.family.saved_as
    tensors = to_tensors(adapter, keys.base_of_module, keys.kernels, whole=whole, style=style)
    content = metadata_of(adapter, keys.family, whole=whole)
    if metadata is not None:
        content |= base_metadata(keys.family, keys.prediction_type) | dict(metadata)
        content |= hashes(tensors, content)
    return tensors, content


def metadata_of(adapter: Adapter, family: Family, *, whole: bool = False) -> dict[str, str]:
    """Return the metadata by which other programs recognise a LoRA.

    Args:
        adapter: The adapter that is saved.
        family: The family of its base model.
        whole: Whether large deltas are written without factors; see `to_tensors`.
    """
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
