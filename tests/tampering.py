"""What may be wrong with a bundle, as functions that make it so; each is given the folder."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto, helper
from tiny_bundles import GRAPH, TOKENIZER

MAX_GROWTH_BYTES = 96 << 20  # refusing the largest of these bundles takes far less; a length believed takes 2**50
_KIB = 1024  # ru_maxrss counts in these

Tamper = Callable[[Path], object]


def flip(path: Path, position: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


def edited(edit: Callable[[dict[str, Any]], object]) -> Tamper:
    def tamper(bundle: Path) -> None:
        path = bundle / "bundle.json"
        document = json.loads(path.read_text())
        edit(document)
        path.write_text(json.dumps(document, ensure_ascii=False))

    return tamper


def reseal(bundle: Path) -> Path:
    """Make sizes and hashes right again, as an attacker would."""

    def edit(document: dict[str, Any]) -> None:
        for name in document["files"]:
            data = (bundle / name).read_bytes()
            document["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    edited(edit)(bundle)
    return bundle


def graphed(edit: Callable[[ModelProto], object]) -> Tamper:
    def tamper(bundle: Path) -> None:
        model = onnx.load_model_from_string((bundle / GRAPH).read_bytes())
        edit(model)
        (bundle / GRAPH).write_bytes(model.SerializeToString())
        reseal(bundle)

    return tamper


def external(**entries: str) -> Tamper:
    def edit(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        found = {entry.key: entry.value for entry in tensor.external_data} | entries
        del tensor.external_data[:]
        for key, value in found.items():
            tensor.external_data.add(key=key, value=value)

    return graphed(edit)


def shaped(*dims: int) -> Tamper:
    def edit(model: ModelProto) -> None:
        model.graph.initializer[0].dims[:] = dims

    return graphed(edit)


def replaced(name: str, data: bytes) -> Tamper:
    def tamper(bundle: Path) -> None:
        (bundle / name).write_bytes(data)
        reseal(bundle)

    return tamper


def renamed(name: str, other: str) -> Tamper:
    return edited(lambda document: document["files"].update({other: document["files"].pop(name)}))


def listed(*names: str) -> Tamper:
    return edited(lambda document: document["files"].update({n: {"size": 0, "sha256": "0" * 64} for n in names}))


def field(path: str, value: object, separator: str = ".") -> Tamper:
    def edit(document: dict[str, Any]) -> None:
        *parents, last = path.split(separator)
        for parent in parents:
            document = document[parent]
        document[last] = value

    return edited(edit)


def put(name: str, make: Callable[[Path], object]) -> Tamper:
    """Something of another kind where the file `name` was, or where there was none."""

    def tamper(bundle: Path) -> None:
        (bundle / name).unlink(missing_ok=True)
        make(bundle / name)

    return tamper


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def move_and_link(bundle: Path) -> None:
    (bundle / "step").rename(bundle.with_name("real"))
    (bundle / "step").symlink_to(bundle.with_name("real"))


def with_text(old: bytes, new: bytes) -> Tamper:
    def tamper(bundle: Path) -> None:
        path = bundle / "bundle.json"
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new, 1))

    return tamper


def sparse_file(name: str, size: int) -> Tamper:
    def tamper(bundle: Path) -> None:
        with (bundle / name).open("r+b") as stream:
            stream.truncate(size)

    return tamper


def outside(name: str = "outside") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3, 1], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "model.safetensors", "offset": "80", "length": "12"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def a_constant(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["outside"], value=outside()))


def sparse_outside() -> onnx.SparseTensorProto:
    indices = helper.make_tensor("indices", TensorProto.INT64, [3], [0, 1, 2])
    return helper.make_sparse_tensor(outside(), indices, [3, 1])


def a_sparse_constant(model: ModelProto) -> None:
    node = helper.make_node("Constant", [], ["outside"])
    node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse_outside())
    model.graph.node.append(node)


def a_branch(inner: Callable[[onnx.GraphProto], object]) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        branch = onnx.GraphProto(name="branch")
        inner(branch)
        model.graph.node.append(helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch))

    return edit


def functions(*calls: tuple[str, list[str]], node: Callable[[], onnx.NodeProto] | None = None) -> Tamper:
    """Local functions, each calling the named others, and one more node in each."""

    def edit(model: ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("local", 1))
        for name, callees in calls:
            nodes = [helper.make_node(callee, ["x"], ["y"], domain="local") for callee in callees]
            nodes += [node()] if node else []
            imports = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
            model.functions.append(helper.make_function("local", name, ["x"], ["y"], nodes, imports))
        model.graph.node.append(helper.make_node(calls[0][0], ["sample"], ["z"], domain="local"))

    return graphed(edit)


def an_operator(domain: str, op_type: str = "Add") -> Tamper:
    def edit(model: ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid(domain, 1))
        model.graph.node.append(helper.make_node(op_type, ["sample"], ["z"], domain=domain))

    return graphed(edit)


def graph_output(*dims: int | str, dtype: int = TensorProto.FLOAT, name: str = "next_sample") -> Tamper:
    return graphed(lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_value_info(name, dtype, dims)))


def tokenizer(model: object) -> Tamper:
    return replaced(TOKENIZER, json.dumps({"model": model}).encode())


def grown_by(action: Callable[[], object]) -> int:
    """How many bytes the largest memory use of this process rose."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    action()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _KIB
