"""The bytes of a safetensors file.

They are those that the library safetensors writes, but for the order of the metadata: there it is
random, here it is fixed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..errors import SaveError
from .limits import HEADER_BYTES

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

    Raises:
        SaveError: See `header`.
    """
    ordered = in_order(tensors)
    yield header(ordered, metadata)
    for tensor in ordered.values():
        yield content(tensor)


def in_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in the order in which they stand in a file."""
    return dict(sorted(tensors.items(), key=lambda item: (_PLACES[item[1].dtype], item[0])))


def header(ordered: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    """Return the beginning of a file, up to the first tensor.

    Args:
        ordered: Key -> tensor, as `in_order` returns them.
        metadata: See `blocks`.

    Raises:
        SaveError: It would be larger than what `file_header` reads.
    """
    entries: dict[str, object] = {}
    if metadata is not None:
        entries["__metadata__"] = dict(sorted(metadata.items()))
    start = 0
    for key, tensor in ordered.items():
        end = start + tensor.nbytes
        entries[key] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":"))
    # half of a surrogate pair, out of a stranger's metadata, has no bytes
    written = text.encode("utf-8", errors="replace")
    written += b" " * (-len(written) % _ALIGNMENT)
    if len(written) > HEADER_BYTES:
        raise SaveError(
            f"the file's header would have {len(written)} bytes, and no file of more than "
            f"{HEADER_BYTES} is read again; merge with fewer or shorter prompts"
        )
    return len(written).to_bytes(8, "little") + written


def content(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor."""
    data: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data
