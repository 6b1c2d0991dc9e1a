"""Which module of a model a LoRA's key names, in every spelling, and under which key it is
saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..iteris_core import AdapterError
from ..iteris_core.layers import weight_shape

TEXT_PREFIX = "clip_l."
UNET_PREFIX = "diffusion_model."
_TRANSFORMER = f"{TEXT_PREFIX}transformer."


@dataclass(frozen=True)
class ModelKeys:
    """Names and sizes of one model's modules; keeps no weights alive.

    Args:
        host_keys: Key base -> weight, as the host's own LoRA loader knows them.
        module_of_base: Key base -> module path, in the host's spellings and those of PEFT and
            diffusers that it does not know. Only modules that can be saved.
        base_of_module: Module path -> the key base that every SD1.5 program knows.
        shapes: Module path -> (d_out, d_in), of layers that can be merged.
        kernels: Module path -> (height, width), of convolutions.
        vector_sizes: Path of a bias or a norm's weight -> its size.
    """

    host_keys: Mapping[str, str]
    module_of_base: Mapping[str, str]
    base_of_module: Mapping[str, str]
    shapes: Mapping[str, tuple[int, int]]
    kernels: Mapping[str, tuple[int, int]]
    vector_sizes: Mapping[str, int]

    def bases_of(self, path: str) -> list[str]:
        """Return every key base that names a module, the one under which it is saved first."""
        own = self.base_of_module.get(path, path)
        others = (base for base, module in self.module_of_base.items() if module == path)
        return list(
            dict.fromkeys(
                [
                    own,
                    *others,
                    *(b for b, weight in self.host_keys.items() if weight == f"{path}.weight"),
                ]
            )
        )

    def weight_shape(self, path: str) -> tuple[int, ...]:
        """Return the shape of a weight tensor: four numbers at a convolution."""
        d_out, d_in = self.shapes[path]
        height, width = self.kernels.get(path, (1, 1))
        return (
            (d_out, d_in // (height * width), height, width)
            if path in self.kernels
            else (d_out, d_in)
        )


def model_keys(
    modules: Mapping[str, nn.Module],
    host_keys: Mapping[str, object],
    diffusers_names: Mapping[str, str],
) -> ModelKeys:
    """Return the tables of a model.

    Args:
        modules: Module path -> module, UNet and text encoder.
        host_keys: The host's own table; entries for parts of a weight are left out.
        diffusers_names: Name of a UNet parameter in diffusers -> its name in the host.
    """
    whole_weights = {
        base: key
        for base, key in host_keys.items()
        if isinstance(key, str) and key.endswith(".weight")
    }
    bases = {base: key.removesuffix(".weight") for base, key in whole_weights.items()}
    of_diffusers = {
        key.removesuffix(".weight"): UNET_PREFIX + path.removesuffix(".weight")
        for key, path in diffusers_names.items()
        if key.endswith(".weight")
    }
    saved_as = {path: base for base, path in bases.items() if base.startswith("lora_unet_")}
    saved_as |= {path: "lora_unet_" + name.replace(".", "_") for name, path in of_diffusers.items()}
    saved_as |= {path: base for base, path in bases.items() if base.startswith("lora_te_")}
    for name, path in of_diffusers.items():
        bases |= {
            prefix + name: path
            for prefix in ("", "unet.", "base_model.model.", "base_model.model.unet.")
        }
    for path in filter(lambda path: path.startswith(_TRANSFORMER), modules):
        name = path.removeprefix(_TRANSFORMER)
        bases |= {
            prefix + name: path
            for prefix in ("", "base_model.model.", "base_model.model.text_encoder.")
        }
    return ModelKeys(
        host_keys=whole_weights,
        module_of_base={
            base: path for base, path in bases.items() if path in saved_as and path in modules
        },
        base_of_module=saved_as,
        shapes=_shapes(modules),
        kernels={
            path: module.kernel_size
            for path, module in modules.items()
            if isinstance(module, nn.Conv2d)
        },
        vector_sizes={
            f"{path}.{name}": parameter.numel()
            for path, module in modules.items()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.ndim == 1
        },
    )


def _shapes(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    shapes = {}
    for path, module in modules.items():
        try:
            shapes[path] = weight_shape(module)
        except AdapterError:  # no target layer, so no adapter may change it
            continue
    return shapes
