"""What ComfyUI 0.33 asks of its package of this name, which moves the weights of a model to an
NVIDIA or AMD GPU when a layer is called, on the device of `torch_npu`.

A weight's memory is its own only while it is pinned: half of the weights never get any, and are
copied for each call into memory that the next such weight takes; the others lose theirs every few
calls. What is lost is filled with NaN.

By its place it also hides the real package from the runs on this device that load nothing on
demand, which is harmless.
"""

import ctypes
import itertools
import mmap
import os
import sys
import types

from torch import empty, inference_mode, uint8
from torch.nn import Parameter

EVICT_EVERY = 7  # faults


def _module(name, **content):
    module = sys.modules[f"{__name__}.{name}"] = types.ModuleType(name)
    vars(module).update(content)
    globals()[name] = module


def _memory(size, device):
    with inference_mode(False):
        return empty(size, dtype=uint8, device=device)


class VRAMBuffer:
    """Memory that is taken again from its beginning by whoever asks."""

    def __init__(self, max_size, device):
        self.memory = _memory(1 << 27, f"npu:{device}")
        self.taken = 0

    def size(self):
        return self.taken

    def get(self, size, offset=0):
        self.taken = max(self.taken, size + offset)
        assert self.taken <= len(self.memory)
        return self, offset, size


class ModelVBAR:
    def __init__(self, size, device):
        self.device = f"npu:{device}"
        self.weights = {}
        self.signatures, self.pins = {}, {}
        self.counter = itertools.count(1)

    def prioritize(self):
        """Every model is as important as another."""

    def alloc(self, size):
        offset = 512 + sum(-(-len(memory) // 512) * 512 for memory in self.weights.values())
        self.weights[offset] = _memory(size, self.device)
        return self, offset, size

    def fault(self, offset):
        number = next(self.counter)
        if number % EVICT_EVERY == 0:
            self.free_memory(1)
        if list(self.weights).index(offset) % 2:
            return None
        self.pins[offset] = self.pins.get(offset, 0) + 1
        return self.signatures.setdefault(offset, number)

    def unpin(self, offset):
        if self.pins.get(offset):
            self.pins[offset] -= 1

    def loaded_size(self):
        return sum(len(self.weights[offset]) for offset in self.signatures)

    def free_memory(self, size):
        freed = 0
        for offset in list(self.signatures):
            if freed < size and not self.pins[offset]:
                del self.signatures[offset]
                self.weights[offset].fill_(0xFF)
                freed += len(self.weights[offset])
        return freed


class ModelMMAP:
    def __init__(self, path):
        self.file = open(path, "rb")  # noqa: SIM115 - as long as its tensors
        self.mapped = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_COPY)

    def get(self):
        return ctypes.addressof(ctypes.c_char.from_buffer(self.mapped))

    def get_file_handle(self):
        return self.file.fileno()

    def bounce(self):
        return True


class HostBuffer:
    """Pinned memory, of which there is none without CUDA."""

    def __init__(self, size, prewarm=0, max_grow_size=0):
        self.size = 0

    def truncate(self, size, do_unregister=True):
        assert size == 0


def aimdo_to_tensor(alloc, device):
    """Return bytes as from an address: with a version of their own."""
    owner, offset, size = alloc
    memory, start = (
        (owner.weights[offset], 0) if isinstance(owner, ModelVBAR) else (owner.memory, offset)
    )
    return empty(0, dtype=uint8, device=device).set_(memory.untyped_storage(), start, (size,), (1,))


def read_file_to_device(file, offset, size, stream, address, device, mark_cold=True):
    ctypes.memmove(address, os.pread(file, size, offset), size)


class Stream:
    """Waits for nothing: whatever it is given is done at once."""

    def wait_stream(self, stream):
        pass

    def synchronize(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def init_devices(devices):
    """Change ComfyUI to what this device can do, before it loads a model."""
    import comfy.model_management
    import comfy.model_patcher

    streams = itertools.cycle([Stream(), Stream()])
    comfy.model_management.get_offload_stream = lambda device: next(streams)
    patcher = comfy.model_patcher.ModelPatcherDynamic
    load_list = patcher._load_list

    def of_any_size(self, for_dynamic=False, default_device=None):
        """Return what is loaded: with layers of up to 16 KB, which ComfyUI would load at once, and
        with parameters of modules that hold others, into which torch writes no other device's.
        """
        for module in self.model.modules():
            if any(module.children()):
                for name, parameter in module.named_parameters(recurse=False):
                    moved = parameter.detach().to(default_device)
                    setattr(module, name, Parameter(moved, requires_grad=False))
        return [
            (*order, 1 << 20, name, module, parameters)
            for *order, _, name, module, parameters in load_list(self, for_dynamic=for_dynamic)
        ]

    patcher._load_list = of_any_size
    return True


def _nothing(*_, **__):
    return 0


_module("control", init=_nothing, init_devices=init_devices, analyze=_nothing)
for level in ("critical", "error", "warning", "info", "detail", "debug"):
    vars(sys.modules[f"{__name__}.control"])[f"set_log_{level}"] = _nothing
_module("torch", aimdo_to_tensor=aimdo_to_tensor)
_module("vram_buffer", VRAMBuffer=VRAMBuffer)
_module("model_mmap", ModelMMAP=ModelMMAP)
_module("host_buffer", HostBuffer=HostBuffer, read_file_to_device=read_file_to_device)
_module(
    "model_vbar",
    ModelVBAR=ModelVBAR,
    vbar_fault=lambda alloc: alloc[0].fault(alloc[1]),
    vbar_unpin=lambda alloc: alloc and alloc[0].unpin(alloc[1]),
    vbar_signature_compare=lambda one, other: one is not None and one == other,
    vbars_analyze=_nothing,
    vbars_reset_watermark_limits=_nothing,
)
