"""Schemas of nodes: they keep what they are given."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Input:
    io_type = ""

    def __init__(
        self,
        id: str,
        *args: Any,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        **more: Any,
    ) -> None:
        self.id = id
        self.display_name = display_name
        self.optional = optional
        self.tooltip = tooltip
        self.extra_dict: dict[str, Any] = {}
        self.more = more

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["more"][name]
        except KeyError:
            raise AttributeError(name) from None


class Output:
    def __init__(self, display_name: str, tooltip: str | None = None) -> None:
        self.display_name = display_name
        self.tooltip = tooltip


class Type:
    """A socket's type; `Input` and `Output` make sockets of it."""

    Input = Input
    Output = Output


def Custom(io_type: str) -> type[Type]:
    return type(io_type, (Type,), {"Input": type("Input", (Input,), {"io_type": io_type})})


Boolean, Clip, Combo, Conditioning, Float, Image, Int, Model, String, Vae = map(
    Custom,
    ("BOOLEAN", "CLIP", "COMBO", "CONDITIONING", "FLOAT", "IMAGE", "INT", "MODEL", "STRING", "VAE"),
)


class Hidden(Enum):
    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"


@dataclass
class Schema:
    node_id: str
    display_name: str
    category: str
    inputs: list[Input]
    outputs: list[Output] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False


class ComfyNode:
    pass


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None, **more: Any) -> None:
        self.args = args
        self.ui = ui
