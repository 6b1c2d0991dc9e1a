"""A device of its own that ComfyUI and libraries take for an NPU: it has memory of its own, which no
operation may mix with the CPU's. The CPU computes.

It stands for GPUs where there is none. It has no streams: every operation waits.
"""

import types
from pathlib import Path

import torch
from torch.utils.cpp_extension import load

torch.utils.rename_privateuse1_backend("npu")
memory = load("second_device", [str(Path(__file__).with_name("device.cpp"))], extra_cflags=["-O1"])


def npu_fusion_attention(*args, **named):
    """Is imported by libraries that find an NPU, and called by none here."""
    raise NotImplementedError


npu_rotary_mul = npu_fusion_attention


def _stats(device=None):
    return {
        "active_bytes.all.current": memory.used(),
        "reserved_bytes.all.current": memory.used(),
    }


npu = types.ModuleType("torch.npu")
vars(npu).update(
    device_count=lambda: 1,
    is_available=lambda: True,
    is_initialized=lambda: True,
    current_device=lambda: 0,
    set_device=lambda device: None,
    get_device_name=lambda device=None: "second device",
    synchronize=lambda device=None: None,
    empty_cache=lambda: None,
    mem_get_info=lambda device=None: (memory.limit() - memory.used(), memory.limit()),
    memory_stats=_stats,
    get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
    manual_seed=lambda seed: None,
    manual_seed_all=lambda seed: None,
    _is_in_bad_fork=lambda: False,
    _lazy_init=lambda: None,
)
torch._register_device_module("npu", npu)
torch.utils.generate_methods_for_privateuse1_backend()
