"""ComfyUI's own code in the merge node's reader, for the cases of `fuzz_readers`. Needs ComfyUI in
this process; see `in_comfy`.
"""

import logging
from types import SimpleNamespace

import comfy.lora_convert
import fuzz_readers
from iteris_pack.nodes.host.deltas import HostDeltas
from torch import nn

from iteris_core import Adapter
from iteris_core.files import kohya
from iteris_core.files.tensors import read_tensors


def tree_of(modules):
    """Return a module that has modules at dotted paths."""
    root = nn.Module()
    for path, module in modules.items():
        *outer, last = path.split(".")
        place = root
        for name in outer:
            if name not in dict(place.named_children()):
                place.add_module(name, nn.Module())
            place = place.get_submodule(name)
        place.add_module(last, module)
    return root


patcher = SimpleNamespace(model=tree_of(fuzz_readers.HOST_MODULES), backup={}, patches={})
deltas = HostDeltas(
    patcher, SimpleNamespace(patcher=patcher), fuzz_readers.HOST_KEYS, lambda path: 0.7
)


def as_node(path) -> Adapter:
    tensors, metadata = read_tensors(path)
    tensors = comfy.lora_convert.convert_lora(tensors)
    return kohya.parse(path.stem, tensors, fuzz_readers.HOST_KEYS, metadata, dense_delta=deltas)


# what ComfyUI logs is raised as an error; see `nodes.foreign`
for handler in logging.getLogger().handlers:
    handler.setLevel(logging.CRITICAL)
fuzz_readers.FILES["merge node"] = as_node
