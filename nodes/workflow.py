"""Texts in the nodes of a workflow, such as file names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_TEXT_NODES = ("PrimitiveString", "PrimitiveStringMultiline")


def strings_in(value: Any) -> Iterator[str]:
    """Yield every text in a workflow, at any depth; in no order."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, (list, tuple)):
            waiting += item


def texts_upstream(prompt: Mapping[str, Any], node_id: str, inputs: Sequence[str]) -> Iterator[str]:
    """Yield every text in some inputs of a node and in the nodes before them; see `upstream`."""
    own = inputs_of(prompt, node_id)
    before = (inputs_of(prompt, each) for each in upstream(prompt, node_id, inputs))
    for values in [{name: own[name] for name in inputs if name in own}, *before]:
        for value in values.values():
            if not _is_link(prompt, value):
                yield from strings_in(value)


def upstream(prompt: Mapping[str, Any], node_id: str, inputs: Sequence[str]) -> Iterator[str]:
    """Yield the nodes that some inputs of a node come from, however far back.

    Args:
        prompt: Node's id -> node, as ComfyUI keeps a workflow; a link is [id, number of the
            output].
        node_id: The node.
        inputs: Names of the inputs of the node that count.
    """
    own = inputs_of(prompt, node_id)
    waiting = [own[name] for name in inputs if name in own]
    seen = set()
    while waiting:
        value = waiting.pop()
        if _is_link(prompt, value) and str(value[0]) not in seen:
            seen.add(str(value[0]))
            yield str(value[0])
            waiting += inputs_of(prompt, str(value[0])).values()


def needed_for(prompt: Mapping[str, Any], targets: Iterable[str]) -> dict[str, Any]:
    """Return some nodes of a workflow, and those that they come from, however far back."""
    found = {str(node) for node in targets}
    for node in tuple(found):
        found.update(upstream(prompt, node, tuple(inputs_of(prompt, node))))
    return {node: given for node, given in prompt.items() if node in found}


def text_at(prompt: Mapping[str, Any], value: Any) -> str | None:
    """Return the text of an input, also where it comes from one of the host's nodes that hold a
    text; None: nobody knows it before a run.
    """
    if _is_link(prompt, value) and prompt[str(value[0])].get("class_type") in _TEXT_NODES:
        value = inputs_of(prompt, value[0]).get("value")
    return value if isinstance(value, str) else None


def _is_link(prompt: Mapping[str, Any], value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt


def inputs_of(prompt: Mapping[str, Any], node_id: str) -> Mapping[str, Any]:
    inputs: Mapping[str, Any] = prompt.get(str(node_id), {}).get("inputs", {})
    return inputs
