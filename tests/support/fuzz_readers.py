"""Every reader of files keeps one rule: a result, or a typed error that names the file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fuzz_files import MODULES, Case
from iteris_pack.nodes import host
from iteris_pack.nodes.keys import model_keys
from iteris_pack.nodes.loras.about import about_lora, about_model, thumbnail_of
from torch import Tensor

from iteris_core import Adapter, IterisError
from iteris_core.diffusion.loading import read_lora
from iteris_core.diffusion.recipe import read_recipe
from iteris_core.files import diffusers, kohya, peft
from iteris_core.files.adapter_kinds import own_dense_delta
from iteris_core.files.families import FAMILIES
from iteris_core.files.headers import lora_header
from iteris_core.files.metadata import RECIPE_KEY
from iteris_core.files.tensors import read_header, read_tensors
from iteris_core.language.samples import read_token_ids
from iteris_core.layers import layer_shapes

SECONDS = 5.0  # of one reader, on the processor
LETTERS = 2_000  # of an error about a file
ANSWER = 200_000  # characters of the route's answer

HOST_MODULES = {
    path.replace("unet.", "diffusion_model.", 1)
    if path.startswith("unet.")
    else path.replace("text_encoder.", "clip_l.transformer.", 1): module
    for path, module in MODULES.items()
}
_OF_UNET = {
    path.removeprefix("diffusion_model."): f"{path}.weight"
    for path in HOST_MODULES
    if path.startswith("diffusion_model.")
}
HOST_KEYS = model_keys(
    FAMILIES["SD1.5"],
    HOST_MODULES,
    {"lora_unet_" + name.replace(".", "_"): weight for name, weight in _OF_UNET.items()}
    | {
        "lora_te_" + path.removeprefix("clip_l.transformer.").replace(".", "_"): f"{path}.weight"
        for path in HOST_MODULES
        if path.startswith("clip_l.")
    },
    {f"{name}.weight": f"{name}.weight" for name in _OF_UNET},
)
MODEL: Any = SimpleNamespace(
    modules=MODULES,
    keys=diffusers.model_keys(MODULES, FAMILIES["SD1.5"], "epsilon"),
    is_text_module=lambda path: path.startswith("text_encoder."),
    family=FAMILIES["SD1.5"],
    own_path=lambda path: path,
)


def host_weight(path: str) -> Tensor:
    weight: Any = HOST_MODULES[path].weight
    return weight.detach()


# How the merge node makes dense deltas, which ComfyUI itself does where it is there.
make_dense: Callable[..., Tensor] = own_dense_delta(host_weight)


def as_node(path: Path) -> Adapter:
    tensors, metadata = read_tensors(path)
    return kohya.parse(path.stem, tensors, HOST_KEYS, metadata, dense_delta=make_dense)


def as_route(path: Path) -> dict[str, Any]:
    with replaced(
        lora_names=lambda: [path.name],
        lora_path=lambda name: path,
        find_lora=lambda name: path,
        find_model=lambda name: path,
    ):
        answer = about_lora(path.name)
        of_model = about_model(path.name)
        has_picture = thumbnail_of(path.name) is not None
        assert answer["thumbnail"] == (has_picture and answer["error"] is None)
    assert len(json.dumps(of_model)) <= LETTERS
    assert of_model["error"] is None or path.name in of_model["error"]
    assert len(json.dumps(answer)) <= ANSWER
    assert answer["error"] is None or path.name in answer["error"]
    return answer


@contextmanager
def replaced(**functions: Callable[..., Any]) -> Iterator[None]:
    """Replace functions of `nodes.host`; not by setattr, which would load what is there."""
    before = {name: vars(host).get(name) for name in functions}
    vars(host).update(functions)
    try:
        yield
    finally:
        for name, function in before.items():
            if function is None:
                del vars(host)[name]
            else:
                vars(host)[name] = function


def recipe_in(path: Path) -> object:
    _, metadata = read_header(path)
    return read_recipe(path.name, metadata.get(RECIPE_KEY, "{}"))


FILES: Mapping[str, Callable[[Path], object]] = {
    "read_tensors": read_tensors,
    "lora_header": lora_header,
    "merge node": as_node,
    "merge sd15": lambda path: read_lora(MODEL, path, 0.5),
    "route": as_route,
    "recipe": recipe_in,
    "token ids": read_token_ids,
}
FOLDERS: Mapping[str, Callable[[Path], object]] = {
    "peft": lambda path: peft.load(
        path, layer_shapes(MODULES), lambda path: MODULES[path].get_parameter("weight")
    ),
}


def quick(read: Callable[..., Any], *given: Any) -> Any:
    """Return what a reader returns, which may not take long."""
    begun = time.thread_time()
    try:
        return read(*given)
    finally:
        assert time.thread_time() - begun < SECONDS


def read_or_refused(read: Callable[[Any], object], given: Any, name: str) -> None:
    """Let a reader read something, or refuse it in a short sentence with its name."""
    try:
        result = quick(read, given)
    except IterisError as error:
        assert name in str(error) and len(str(error)) <= LETTERS
    else:
        assert not isinstance(result, Adapter) or not _wrong(result), _wrong(result)


def try_all(case: Case, folder: Path) -> None:
    """Give a case to every reader, in an empty folder."""
    file = folder / "stranger.safetensors"
    adapter = folder / "stranger"
    adapter.mkdir(exist_ok=True)
    for path in (file, adapter / "adapter_model.safetensors", file.with_suffix(".png")):
        path.write_bytes(case.tensors)
    for path in (adapter / "adapter_config.json", file.with_suffix(".metadata.json")):
        path.write_bytes(case.settings)
    beside = {"civitai": {"trainedWords": case.words}}
    file.with_suffix(".civitai.info").write_text(json.dumps(beside))
    for readers, place in ((FILES, file), (FOLDERS, adapter)):
        for read in readers.values():
            read_or_refused(read, place, "stranger")


def _wrong(result: object) -> str:
    """Return what is wrong with an adapter that was read; empty: nothing."""
    if not isinstance(result, Adapter):
        return ""
    shapes = {**layer_shapes(MODULES), **HOST_KEYS.shapes}
    for path, delta in result.deltas.items():
        if delta.shape != shapes[path] or not torch.isfinite(delta.dense()).all():
            return f"a delta of {delta.shape} at {path}, or one that is not finite"
    sizes = {**MODEL.keys.vector_sizes, **HOST_KEYS.vector_sizes}
    for path, vector in result.vectors.items():
        if tuple(vector.shape) != (sizes[path],) or not torch.isfinite(vector).all():
            return f"a vector of {tuple(vector.shape)} at {path}, or one that is not finite"
    return ""
