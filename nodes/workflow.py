"""Texts in the nodes of a workflow, such as file names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


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
    """Yield every text in the nodes that some inputs of a node come from, however far back.

    Args:
        prompt: Node's id -> node, as ComfyUI keeps a workflow; a link is [id, number of the
            output].
        node_id: The node.
        inputs: Names of the inputs of the node that count.
    """
    values = {name: value for name, value in inputs_of(prompt, node_id).items() if name in inputs}
    waiting: list[Mapping[str, Any]] = [values]
    seen = set()
    while waiting:
        for value in waiting.pop().values():
            if isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt:
                if str(value[0]) not in seen:
                    seen.add(str(value[0]))
                    waiting.append(inputs_of(prompt, str(value[0])))
            else:
                yield from strings_in(value)


def inputs_of(prompt: Mapping[str, Any], node_id: str) -> Mapping[str, Any]:
    inputs: Mapping[str, Any] = prompt.get(str(node_id), {}).get("inputs", {})
    return inputs
