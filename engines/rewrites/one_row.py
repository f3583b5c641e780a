"""Rows looked up for every token → a single one, where all tokens look up the same: those of a video that is made anew.

A timestep's scales and shifts are looked up for every token, since those of given frames have timestep 0. Where no
frame is given, one row for all is added and multiplied without being written out for each of them.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import numpy as np
import onnx_ir as ir

from kinograph.engines.rewrites.constants import add_constant

__all__ = ["rows_of_tokens_to_one"]

_SPREAD = ("Add", "Mul")  # over tokens, by broadcasting
_TOKENS = 1  # axis of what is looked up with [1, S], [1, S, C], and of indices


def rows_of_tokens_to_one(model: ir.Model, weights: MutableMapping[str, Any]) -> None:
    """Shorten indices [1, S] to [1, 1] if they are all the same, where rows [1, S, C] are spread over tokens anyway."""
    roots: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        index = node.inputs[1] if node.op_type == "Gather" and not node.domain else None
        if index is not None and _is_row(index):
            roots.setdefault(_root(index), []).append(node)
    for root, lookups in roots.items():
        known = root.producer() is not None  # a graph's own input is not shortened
        if known and all(_is_spread(lookup.outputs[0]) for lookup in lookups) and _only(root, lookups):
            _forget_shapes(root)
            _shorten(model, root)


def _is_row(index: ir.Value) -> bool:
    shape = index.shape
    return shape is not None and shape.rank() == 2 and shape[0] == 1 and index.producer() is not None


def _root(index: ir.Value) -> ir.Value:
    """What an index was computed from, times and plus constants."""
    node = index.producer()
    while node is not None and node.op_type in _SPREAD and node.inputs[0] is not None and _is_number(node.inputs[1]):
        index = node.inputs[0]
        node = index.producer()
    return index


def _is_number(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.shape is not None and value.shape.rank() == 0


def _is_spread(rows: ir.Value) -> bool:
    """Whether these rows are only added to, or multiplied with, what has all tokens."""
    if rows.is_graph_output():
        return False
    for use in rows.uses():
        if use.node.op_type not in _SPREAD:
            return False
        other = use.node.inputs[1 - use.idx]
        if other is None or other.shape is None or rows.shape is None or other.shape.rank() != rows.shape.rank():
            return False
        maker, tokens = other.producer(), rows.shape[_TOKENS]
        told = isinstance(tokens, int) or tokens.value is not None  # two that nobody knows are not the same
        if not told or other.shape[_TOKENS] != tokens or (maker is not None and maker.op_type == "Gather"):
            return False
    return True


def _only(value: ir.Value, lookups: list[ir.Node]) -> bool:
    """Whether nothing but these look-ups reads an index or what is computed from it."""
    for use in value.uses():
        if use.node in lookups:
            continue
        if use.node.op_type not in _SPREAD or not _only(use.node.outputs[0], lookups):
            return False
    return not value.is_graph_output()


def _forget_shapes(value: ir.Value) -> None:
    """Of all that is computed from an index, up to the rows: ONNX Runtime would reuse memory by them."""
    for use in value.uses():
        use.node.outputs[0].shape = None
        if use.node.op_type != "Gather":
            _forget_shapes(use.node.outputs[0])


def _shorten(model: ir.Model, root: ir.Value) -> None:
    """Let what reads `root` [1, S] read its first S or 1 instead."""
    maker, readers = root.producer(), [(use.node, use.idx) for use in root.uses()]
    assert maker is not None
    nodes: list[ir.Node] = []

    def constant(what: str, value: list[int]) -> ir.Value:
        return add_constant(model, f"{root.name}.{what}", np.asarray(value, np.int64))

    def write(operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(operator, inputs, attributes, name=f"{root.name}.{operator}"))
        return nodes[-1].outputs[0]

    one, axis = constant("one", [1]), constant("axis", [_TOKENS])
    largest, smallest = (write(name, root, axis, keepdims=0) for name in ("ReduceMax", "ReduceMin"))
    tokens = write("Shape", root, start=_TOKENS, end=_TOKENS + 1)
    count = write("Where", write("Equal", largest, smallest), one, tokens)
    short = write("Slice", root, constant("first", [0]), count, axis)
    short.type = root.type
    model.graph.insert_after(maker, nodes)
    for node, index in readers:
        node.replace_input_with(index, short)
