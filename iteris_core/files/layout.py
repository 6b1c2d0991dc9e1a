"""The bytes of a safetensors file.

They are those that the library safetensors writes, but for the order of the metadata: there it is
random, here it is fixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

_ALIGNMENT = 8  # of the first tensor; larger elements come first, so that all are aligned
# In the order in which safetensors lays tensors out. Hashes of the data depend on it.
DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PLACES = {dtype: place for place, dtype in enumerate(DTYPES)}


def blocks(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file: the header, then each tensor. Equal tensors and
    metadata give equal bytes.

    Args:
        tensors: Key -> tensor, on any device.
        metadata: Strings for the header; None: it has no place for them.
    """
    keys = sorted(tensors, key=lambda key: (_PLACES[tensors[key].dtype], key))
    header: dict[str, object] = {}
    if metadata is not None:
        header["__metadata__"] = dict(sorted(metadata.items()))
    start = 0
    for key in keys:
        tensor = tensors[key]
        end = start + tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
    # half of a surrogate pair, out of a stranger's metadata, has no bytes
    content = text.encode("utf-8", errors="replace")
    content += b" " * (-len(content) % _ALIGNMENT)
    yield len(content).to_bytes(8, "little") + content
    for key in keys:
        data = tensors[key].detach().cpu().contiguous()
        yield data.reshape(-1).view(torch.uint8).numpy().data


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a safetensors file with these tensors and no metadata."""
    digest = hashlib.sha256()
    for block in blocks(tensors):
        digest.update(block)
    return digest.hexdigest()
