"""Keys of LoRA files for the modules of ComfyUI's SD1.5 model, in every spelling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from ..iteris_core.files.model_keys import ModelKeys

TEXT_PREFIX = "clip_l."
UNET_PREFIX = "diffusion_model."
_TRANSFORMER = f"{TEXT_PREFIX}transformer."


@dataclass(frozen=True)
class HostKeys(ModelKeys):
    """Names and sizes of a model's modules, with their names in the host's loader.

    Modules that cannot be saved are in `host_keys` alone.

    Args:
        host_keys: Base of a key -> name of the weight that the host's LoRA loader changes by it.
    """

    host_keys: Mapping[str, str] = field(default_factory=dict)

    def bases_of(self, path: str) -> list[str]:
        """Return every base of keys that names a module. The first is the one under which it is
        saved.
        """
        saved_as = self.base_of_module.get(path, path)
        read_as = (base for base, module in self.module_of_base.items() if module == path)
        loaded_as = (base for base, weight in self.host_keys.items() if weight == f"{path}.weight")
        return list(dict.fromkeys([saved_as, *read_as, *loaded_as]))


def model_keys(
    modules: Mapping[str, nn.Module],
    host_keys: Mapping[str, object],
    diffusers_names: Mapping[str, str],
) -> HostKeys:
    """Return the keys of a model: in the host's spellings, and in those of PEFT and diffusers that
    it does not know.

    Args:
        modules: Module path -> module, of the UNet and the text encoder.
        host_keys: Table of the host's LoRA loader. Entries for parts of a weight are ignored.
        diffusers_names: Name of a UNet parameter in diffusers -> its name in the host.
    """
    whole_weights = {
        base: weight
        for base, weight in host_keys.items()
        if isinstance(weight, str) and weight.endswith(".weight")
    }
    bases = {base: weight.removesuffix(".weight") for base, weight in whole_weights.items()}
    of_diffusers = {
        name.removesuffix(".weight"): UNET_PREFIX + weight.removesuffix(".weight")
        for name, weight in diffusers_names.items()
        if name.endswith(".weight")
    }
    saved_as = {path: base for base, path in bases.items() if base.startswith("lora_unet_")}
    saved_as |= {path: "lora_unet_" + name.replace(".", "_") for name, path in of_diffusers.items()}
    saved_as |= {path: base for base, path in bases.items() if base.startswith("lora_te_")}
    for name, path in of_diffusers.items():
        for prefix in ("", "unet.", "base_model.model.", "base_model.model.unet."):
            bases[prefix + name] = path
    for path in modules:
        if path.startswith(_TRANSFORMER):
            name = path.removeprefix(_TRANSFORMER)
            for prefix in ("", "base_model.model.", "base_model.model.text_encoder."):
                bases[prefix + name] = path
    can_be_read = {
        base: path for base, path in bases.items() if path in saved_as and path in modules
    }
    return HostKeys.of(modules, can_be_read, saved_as, host_keys=whole_weights)
