"""A bundle opens as it was written, and nothing but what was written opens."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from safetensors.numpy import save_file

from kinograph.bundle import Bundle, BundleWriter, verify
from kinograph.bundle import writer as _bundle_writer
from kinograph.bundle.tree import _CHUNK_BYTES
from kinograph.errors import BundleError, OutputError, UsageError
from kinograph.manifest import (
    Component,
    Conditioning,
    Defaults,
    Expert,
    Geometry,
    Manifest,
    Solver,
    Source,
    Tensor,
    Text,
    Variant,
)

GRAPH = "step/fp32/model.onnx"
WEIGHTS = "step/fp32/model.safetensors"
TOKENIZER = "tokenizer.json"
BIAS = np.arange(3, dtype=np.float32).reshape(3, 1)

_MAX_GROWTH_BYTES = 96 << 20  # refusing the largest of these bundles takes far less; a length believed takes 2**50
_KIB = 1024  # ru_maxrss counts in these


def a_manifest(**changes: Any) -> Manifest:
    sample = Tensor(name="sample", dtype="float32", shape=(1, 3, "F"))
    variant = Variant(
        graph=GRAPH,
        weights=(WEIGHTS,),
        inputs=(sample,),
        outputs=(Tensor(name="next_sample", dtype="float32", shape=(1, 3, "F")),),
    )
    fields: dict[str, Any] = {
        "format_version": 1,
        "name": "tiny",
        "family": "test",
        "source": Source(checkpoint="none", pipeline="TestPipeline", exporter="tests"),
        "geometry": Geometry(channels=3, spatial=8, temporal=4, patch=2, positions=1024),
        "defaults": Defaults(width=32, height=32, num_frames=5, fps=8.0, num_inference_steps=2),
        "solver": Solver(name="euler", shift=3.0),
        "conditioning": Conditioning(kind="clean"),
        "text": Text(tokenizer=TOKENIZER, length=8, dim=4, cleaning=("whitespace",)),
        "experts": (Expert(component="step"),),
        "components": {"step": Component(variants={"fp32": variant})},
        "files": {},
    }
    return Manifest(**{**fields, **changes})


def a_graph(weights: Path) -> ModelProto:
    """sample + bias, with the bias in `weights`, a safetensors file beside the graph."""
    with weights.open("rb") as stream:
        (header_size,) = struct.unpack("<Q", stream.read(8))
        begin, end = json.loads(stream.read(header_size))["bias"]["data_offsets"]
    bias = TensorProto(name="bias", data_type=TensorProto.FLOAT, dims=[3, 1], data_location=TensorProto.EXTERNAL)
    place = {"location": weights.name, "offset": 8 + header_size + begin, "length": end - begin}
    for key, value in place.items():
        bias.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(
        [helper.make_node("Add", ["sample", "bias"], ["next_sample"])],
        "step",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, [1, 3, "frames"])],
        [helper.make_tensor_value_info("next_sample", TensorProto.FLOAT, [1, 3, "frames"])],
        [bias],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_bundle(path: Path, *, bias: np.ndarray[Any, Any] = BIAS, force: bool = False, **changes: Any) -> Path:
    with BundleWriter(path, force=force) as writer:
        weights = writer.file(WEIGHTS)
        save_file({"bias": bias}, weights)
        writer.file(GRAPH).write_bytes(a_graph(weights).SerializeToString())
        writer.file(TOKENIZER).write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}}}))
        writer.save(a_manifest(**changes))
    return path


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "tiny"
    write_bundle(path)
    return path


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def no_descriptor_is_leaked() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


# Opening --------------------------------------------------------------------------------------------------------------


def test_an_opened_bundle_is_what_was_written(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        assert opened.path == bundle
        assert opened.digest == hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
        assert opened.manifest.files.keys() == {GRAPH, WEIGHTS, TOKENIZER}
        assert opened.component("step").variants["fp32"].graph == GRAPH
        assert opened.read(GRAPH) == (bundle / GRAPH).read_bytes()
        weights = opened.map(WEIGHTS)
    assert weights.dtype == np.uint8
    assert not weights.flags.writeable
    assert weights[-BIAS.nbytes :].tobytes() == BIAS.tobytes()  # after close()


def test_what_is_not_there_is_named(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        with pytest.raises(BundleError, match="no component 'image_encoder'"):
            opened.component("image_encoder")
        with pytest.raises(BundleError, match=r"no file 'bundle\.json'"):
            opened.read("bundle.json")
    opened.close()
    with pytest.raises(UsageError, match="closed"):
        opened.map(WEIGHTS)


def test_verify_reports_every_byte(bundle: Path) -> None:
    done: dict[str, int] = {}
    manifest = verify(bundle, lambda name, count: done.update({name: count}))
    assert done == {name: file.size for name, file in manifest.files.items()}


def test_an_error_in_the_progress_callback_reaches_the_caller(bundle: Path) -> None:
    def fail(name: str, count: int) -> None:
        raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="from the callback"):
        verify(bundle, fail)


def test_a_file_of_several_chunks_is_read_whole(bundle: Path) -> None:
    data = json.dumps({"model": {"vocab": {str(index): index for index in range(500_000)}}}).encode()
    assert len(data) > 2 * _CHUNK_BYTES
    replaced(TOKENIZER, data)(bundle)
    with Bundle.open(bundle) as opened:
        assert opened.read(TOKENIZER) == data


def test_hashing_a_large_file_takes_little_memory(bundle: Path) -> None:
    with (bundle / WEIGHTS).open("r+b") as stream:
        stream.truncate(256 << 20)
    reseal(bundle)
    assert grown_by(lambda: verify(bundle)) < _MAX_GROWTH_BYTES


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("absent", "No such file"),
        ("tiny/tokenizer.json", "not a folder"),
        (".", "no bundle.json"),
        ("a\0b", "not valid"),
    ],
)
def test_a_path_that_is_no_bundle_is_refused(bundle: Path, path: str, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        Bundle.open(bundle.parent / path)


def test_a_link_to_a_bundle_is_refused(bundle: Path) -> None:
    link = bundle.with_name("link")
    link.symlink_to(bundle)
    with pytest.raises(BundleError, match="symbolic link to"):
        Bundle.open(f"{link}/")


def test_no_engine_gets_what_changed_after_verification(bundle: Path) -> None:
    expected = (bundle / GRAPH).read_bytes()
    with Bundle.open(bundle) as opened:
        (bundle / GRAPH).unlink()
        (bundle / WEIGHTS).rename(bundle / "elsewhere")
        (bundle / GRAPH).write_bytes(b"another graph")
        (bundle / WEIGHTS).write_bytes(b"other weights")
        assert opened.read(GRAPH) == expected
        assert opened.map(WEIGHTS)[-BIAS.nbytes :].tobytes() == BIAS.tobytes()


def test_a_file_altered_in_place_is_not_read(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        for name in (GRAPH, WEIGHTS):
            flip(bundle / name, 20)
            os.utime(bundle / name, (0, 0))
        with pytest.raises(BundleError, match=f"{GRAPH} was altered"):
            opened.read(GRAPH)
        with pytest.raises(BundleError, match=f"{WEIGHTS} was altered"):
            opened.map(WEIGHTS)


# Hostile bundles ------------------------------------------------------------------------------------------------------

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


NFD_NAME = unicodedata.normalize("NFD", "é.txt")

HOSTILE: list[tuple[str, Tamper, str]] = [
    ("1-parent", external(location="../model.safetensors"), r"'bias' is read from '\.\./model"),
    ("2-inner-parent", external(location="a/../../model.safetensors"), "'bias' is read from 'a/"),
    ("3-absolute", external(location="/etc/passwd"), "'bias' is read from '/etc/passwd'"),
    ("3-device", external(location="/dev/zero", length=str(1 << 50)), "'bias' is read from '/dev/zero'"),
    ("3-memory", external(location="*/_ORT_MEM_ADDR_/*", offset="4096"), "'bias' is read from"),
    ("3-empty", external(location=""), "'bias' is read from ''"),
    ("3-unlisted", external(location="tokenizer.json"), "'bias' is read from 'tokenizer.json'"),
    ("4-link", put(WEIGHTS, lambda path: path.symlink_to("/etc/passwd")), f"{WEIGHTS} is a symbolic link"),
    ("4-manifest-link", put("bundle.json", lambda path: path.symlink_to("/etc/passwd")), "bundle.json is a symbolic"),
    ("5-linked-parent", move_and_link, "step is a symbolic link"),
    ("6-hard-link", lambda b: os.link(b / WEIGHTS, b.with_name("x")), f"{WEIGHTS} has 2 hard links"),
    ("6-manifest-hard-link", lambda b: os.link(b / "bundle.json", b.with_name("x")), "bundle.json has 2 hard links"),
    ("7-constant", graphed(a_constant), "'outside' has external data"),
    (
        "7-sparse",
        graphed(lambda m: m.graph.sparse_initializer.append(sparse_outside())),
        "'outside' has external data",
    ),
    ("7-sparse-constant", graphed(a_sparse_constant), "'outside' has external data"),
    (
        "7-sparse-subgraph",
        graphed(a_branch(lambda g: g.sparse_initializer.append(sparse_outside()))),
        "'outside' has external data",
    ),
    ("7-subgraph", graphed(a_branch(lambda g: g.initializer.append(outside()))), "'outside' has external data"),
    (
        "7-subgraph-constant",
        graphed(a_branch(lambda g: g.node.append(helper.make_node("Constant", [], ["c"], value=outside())))),
        "'outside' has external data",
    ),
    (
        "7-function",
        functions(("f", []), node=lambda: helper.make_node("Constant", [], ["y"], value=outside())),
        "'outside' has external data",
    ),
    ("7-half-declared", graphed(lambda m: m.graph.initializer[0].ClearField("data_location")), "'bias' has malformed"),
    ("8-negative-offset", external(offset="-4"), "'bias' has offset '-4'"),
    ("8-not-a-number", external(offset="0x10"), "'bias' has offset '0x10'"),
    ("8-other-digits", external(offset="٤"), "'bias' has offset"),
    ("8-past-the-end", external(offset=str(1 << 40)), f"'bias' ends at byte {(1 << 40) + 12}"),
    ("9-huge-length", external(length=str(1 << 50)), f"'bias' has length {1 << 50}, expected 12"),
    ("9-no-length", external(length=""), "'bias' has offset .* and length ''"),
    ("9-longer-than-shape", external(length="16"), "'bias' has length 16, expected 12"),
    ("10-huge-dims", shaped(1 << 40, 1 << 40), "'bias' has length 12, expected"),
    ("10-overflowing-dims", shaped(1 << 62, 1 << 62), "'bias' has the shape"),
    ("10-wrapping-dims", shaped(1 << 32, 1 << 32), "'bias' has length 12, expected"),
    ("10-negative-dims", shaped(-3, -1), "'bias' has the shape"),
    ("10-string", graphed(lambda m: setattr(m.graph.initializer[0], "data_type", 8)), "element type STRING"),
    ("10-unknown-type", graphed(lambda m: setattr(m.graph.initializer[0], "data_type", 99)), "type 99"),
    (
        "10-inline-dims",
        graphed(
            lambda m: m.graph.initializer.append(TensorProto(name="big", data_type=1, dims=[1 << 39], raw_data=b"1234"))
        ),
        "'big' has 4 bytes, expected",
    ),
    (
        "10-inline-without-data",
        graphed(lambda m: m.graph.initializer.append(TensorProto(name="big", data_type=1, dims=[1 << 39]))),
        "'big' has less data",
    ),
    ("11-unknown-key", external(basepath="/"), "'bias' has malformed external data.*basepath"),
    (
        "11-twice",
        graphed(lambda m: m.graph.initializer[0].external_data.add(key="location", value="x")),
        "'bias' has malformed external data",
    ),
    ("11-both", graphed(lambda m: setattr(m.graph.initializer[0], "raw_data", b"1" * 12)), "both inside and outside"),
    ("12-empty", replaced(GRAPH, b""), f"{GRAPH} is not an ONNX model"),
    ("12-random", replaced(GRAPH, random.Random(0).randbytes(4096)), f"{GRAPH} is not an ONNX model"),
    ("12-text", replaced(GRAPH, b"#!/bin/sh\n"), f"{GRAPH} is not an ONNX model"),
    ("12-truncated", lambda b: replaced(GRAPH, (b / GRAPH).read_bytes()[:-9])(b), f"{GRAPH} is not an ONNX model"),
    ("12-too-large", lambda b: (sparse_file(GRAPH, 65 << 20)(b), reseal(b)), f"{GRAPH} has {65 << 20} bytes"),
    ("13-flipped-bit", lambda b: flip(b / WEIGHTS, -1), f"{WEIGHTS} was altered"),
    ("14-truncated", sparse_file(WEIGHTS, 10), f"{WEIGHTS} has 10 bytes, expected"),
    ("14-missing", lambda b: (b / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    ("15-unlisted", lambda b: (b / "step/readme.txt").write_text("x"), "step/readme.txt is not listed in"),
    ("15-unlisted-folder", lambda b: (b / "engines").mkdir(), "engines is a folder, and is not listed"),
    ("16-hidden", lambda b: (b / ".gitattributes").write_text("x"), ".gitattributes is hidden, and not listed"),
    ("16-hidden-folder", lambda b: (b / ".git").mkdir(), ".git is a folder, and is hidden, and not listed"),
    ("16-hidden-listed", listed(".git/hooks/post-checkout"), "'.git/hooks/post-checkout' is hidden"),
    ("17-fifo", put(WEIGHTS, os.mkfifo), f"{WEIGHTS} is a FIFO"),
    ("17-fifo-unlisted", put("extra", os.mkfifo), "extra is a FIFO"),
    ("17-fifo-manifest", put("bundle.json", os.mkfifo), "bundle.json is a FIFO"),
    ("17-socket", put(WEIGHTS, a_socket), f"{WEIGHTS} is a socket"),
    ("17-folder", put(WEIGHTS, Path.mkdir), f"{WEIGHTS} is a folder"),
    ("18-large", sparse_file("bundle.json", 1 << 30), f"bundle.json has {1 << 30} bytes"),
    ("18-deep-lists", lambda b: (b / "bundle.json").write_bytes(b"[" * (8 << 20)), "nested more than"),
    ("18-deep-objects", lambda b: (b / "bundle.json").write_bytes(b'{"a":' * (2 << 20)), "nested more than"),
    ("18-open-string", lambda b: (b / "bundle.json").write_bytes(b'"\\"' * (1 << 20)), "not valid JSON"),
    ("18-duplicate", with_text(b'"family"', b'"name": "x", "family"'), "key 'name' is given more than once"),
    ("18-not-json", lambda b: (b / "bundle.json").write_bytes(b"\xff\xfe"), "bundle.json is not valid JSON"),
    ("18-not-an-object", lambda b: (b / "bundle.json").write_text("[]"), "bundle.json holds a list"),
    ("18-wrong-type", field("geometry.patch", "two"), r'geometry\.patch: expected `int`, got "two"'),
    ("18-surrogate", with_text(b'"tests"', b'"\\ud800"'), r"source\.exporter: .*not valid Unicode"),
    ("18-huge-integer", with_text(b'"patch": 2', b'"patch": ' + b"9" * 4000), r"geometry\.patch: .*13288-bit"),
    (
        "18-total-size",
        field(f"files|{WEIGHTS}|size", 1, "|"),
        f"{WEIGHTS} has .* bytes, expected 1",
    ),
    ("19-newer", field("format_version", 2), "newer Kinograph: it has format 2.*Upgrade"),
    ("19-older", field("format_version", 0), "older Kinograph: it has format 0.*Export it again"),
    ("19-none", edited(lambda document: document.pop("format_version")), "format_version: got nothing"),
    ("20-case", listed("Step/fp32/model.onnx"), "'Step' and 'step' are one name"),
    ("20-folded", listed("straße", "strasse"), "'strasse' and 'straße' are one name"),
    ("20-decomposed", listed(NFD_NAME), "not in Unicode normal form C"),
    ("20-compatible", listed("ﬁle", "file"), "are one name"),
    ("20-traversal", listed("../x"), r"'\.\./x' is not a normalised path"),
    ("20-absolute", listed("/etc/passwd"), "'/etc/passwd' is an absolute path"),
    ("20-backslash", listed("..\\x"), "has a backslash"),
    ("20-nul", listed("x\0y"), r"'x\\x00y' has a backslash or a character"),
    ("20-dot", listed("step/./x"), "'step/./x' is not a normalised path"),
    ("20-long", listed("x" * 256), "is too long"),
    ("20-deep", listed("/".join("a" * 9)), "is too long"),
    ("20-manifest", listed("bundle.json"), "lists 'bundle.json' itself"),
    ("20-file-and-folder", listed(f"{GRAPH}/x"), "inside what is also listed as a file"),
    ("20-many", listed(*map(str, range(300))), "lists 303 files"),
    ("20-terminal", listed("\x1b[31mred"), r"'\\x1b\[31mred' has"),
    ("23-library-field", field("custom_ops", "evil.so"), "custom_ops: unknown field"),
    ("23-library-in-variant", field("components.step.variants.fp32.plugin", "x"), r"fp32\.plugin: unknown field"),
    ("23-library-file", listed("step/plugin.so.1"), "'step/plugin.so.1' is a native library"),
    ("23-custom-domain", an_operator("evil"), r"operator set 'evil'(.|\n)*operator 'evil.Add'"),
    ("23-tensorrt-plugin", an_operator("trt", "TRT_Anything"), "'trt.TRT_Anything', which is custom"),
    ("23-context", an_operator("com.microsoft", "EPContext"), "'com.microsoft.EPContext'"),
    ("23-python", an_operator("com.microsoft", "PythonOp"), "'com.microsoft.PythonOp'"),
    ("23-in-function", functions(("f", ["missing"])), "operator 'local.missing'"),
    ("23-metadata", graphed(lambda m: m.metadata_props.add(key="ort_config", value="{}")), "ort_config"),
    ("23-training", graphed(lambda m: m.training_info.add()), "training information"),
    ("23-recursion", functions(("f", ["g"]), ("g", ["f"])), "calls itself"),
    ("23-expansion", functions(*((f"f{i}", [f"f{i + 1}"] * 4) for i in range(30)), ("f30", [])), "once .* expanded"),
    ("28-no-vocabulary", tokenizer({"type": "BPE"}), f"{TOKENIZER} is not a tokenizer"),
    ("28-empty-vocabulary", tokenizer({"vocab": {}}), f"{TOKENIZER} has a vocabulary of 0"),
    ("28-not-json", replaced(TOKENIZER, b"\0"), f"{TOKENIZER} is not a tokenizer"),
    ("28-deep", replaced(TOKENIZER, b'{"x":' + b"[" * (1 << 20)), f"{TOKENIZER} is not a tokenizer"),
    ("28-merges", tokenizer({"vocab": {"a": 0}, "merges": ["a a"] * 200_000}), f"{TOKENIZER} has 200000 merges"),
    ("28-large", lambda b: (sparse_file(TOKENIZER, 65 << 20)(b), reseal(b)), f"{TOKENIZER} has {65 << 20} bytes"),
    ("29-nan", with_text(b'"shift": 3.0', b'"shift": NaN'), r"solver\.shift: got nan"),
    ("29-infinite", with_text(b'"shift": 3.0', b'"shift": 1e999'), r"solver\.shift: got inf"),
    ("29-zero", field("solver.shift", 0), r"solver\.shift: .*got 0"),
    ("io-extra-output", graphed(lambda m: m.graph.output.append(m.graph.input[0])), "output 'sample', which"),
    ("io-name", graph_output(1, 3, "f", name="other"), "lacks the output 'next_sample'"),
    ("io-dtype", graph_output(1, 3, "f", dtype=TensorProto.FLOAT16), "'next_sample' is float16"),
    ("io-rank", graph_output(1, 3), "'next_sample' has the shape"),
    ("io-static", graph_output(1, 3, 7), "'next_sample' has the shape"),
    ("io-other-size", graph_output(1, 4, "f"), "'next_sample' has the shape"),
    ("unlisted-graph", renamed(GRAPH, "step/fp32/other.onnx"), f"'{GRAPH}' is not in files"),
    ("unlisted-tokenizer", renamed(TOKENIZER, "other.json"), "text.tokenizer: 'tokenizer.json' is not in files"),
    ("distant-weights", field("components.step.variants.fp32.weights", [TOKENIZER]), "not beside the graph"),
    ("unknown-expert", field("experts", [{"component": "steps"}]), "no component 'steps'"),
    ("gap-in-experts", field("experts", [{"component": "step", "boundary": 1}]), "no timestep may be left over"),
    ("no-image-encoder", field("conditioning.image_tokens", True), "'image_encoder'"),
]


def grown_by(action: Callable[[], object]) -> int:
    """How many bytes the largest memory use of this process rose."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    action()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _KIB


@pytest.mark.parametrize(("tamper", "said"), [pytest.param(t, s, id=i) for i, t, s in HOSTILE])
def test_a_hostile_bundle_is_refused(bundle: Path, tamper: Tamper, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)  # a socket's path is short
    tamper(bundle)

    def refused() -> None:
        with pytest.raises(BundleError, match=said) as caught:
            Bundle.open(bundle)
        lines = str(caught.value).split("\n")
        assert all(line.isprintable() for line in lines)
        assert str(bundle) in lines[0]

    assert grown_by(refused) < _MAX_GROWTH_BYTES


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(os.mkfifo, id="FIFO"),
        pytest.param(lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)), id="device"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), id="link"),
    ],
)
def test_what_is_no_file_is_never_opened(
    bundle: Path, make: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real_open = os.open

    def spy(path: Any, *args: Any, **options: Any) -> int:
        opened.append(os.fspath(path))
        return real_open(path, *args, **options)

    try:
        put(WEIGHTS, make)(bundle)
    except PermissionError:
        pytest.skip("this user makes no devices")
    monkeypatch.setattr(os, "open", spy)
    with pytest.raises(BundleError, match=WEIGHTS):
        Bundle.open(bundle)
    assert "model.onnx" in opened
    assert "model.safetensors" not in opened


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(os.mkfifo, "was replaced while it was being opened", id="FIFO"),
        pytest.param(lambda path: path.symlink_to("/etc/passwd"), "cannot be opened", id="link"),
        pytest.param(lambda path: path.write_bytes(b"x"), "was replaced while it was being opened", id="file"),
    ],
)
def test_a_file_replaced_while_it_is_opened_is_refused(
    bundle: Path, make: Callable[[Path], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def swap(path: Any, *args: Any, **options: Any) -> int:
        if path == "model.safetensors":
            (bundle / WEIGHTS).rename(bundle.with_name("aside"))
            make(bundle / WEIGHTS)
        return real_open(path, *args, **options)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(BundleError, match=f"{WEIGHTS} {said}"):
        Bundle.open(bundle)


def test_every_bad_field_is_named(bundle: Path) -> None:
    for path, value in {
        "geometry.patch": 0,
        "text.cleaning": ["x"],
        "solver.name": None,
        "extra": 1,
        "name": "",
    }.items():
        field(path, value)(bundle)
    edited(lambda document: document["defaults"].pop("fps"))(bundle)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    for name in ("geometry.patch", "text.cleaning[0]", "solver.name", "extra", "name", "defaults.fps"):
        assert f"bundle.json: {name}: " in str(caught.value)


def test_every_bad_file_is_named_but_not_millions(bundle: Path) -> None:
    (bundle / GRAPH).unlink()
    (bundle / TOKENIZER).write_text("")
    for index in range(200):
        (bundle / str(index)).touch()
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    assert "and more" in str(caught.value)
    assert str(caught.value).count("\n") < 60


def test_functions_that_are_fine_are_accepted(bundle: Path) -> None:
    functions(("f", ["g"]), ("g", []), node=lambda: helper.make_node("Relu", ["x"], ["y"]))(bundle)
    Bundle.open(bundle).close()


def test_an_unreadable_file_is_named(bundle: Path) -> None:
    (bundle / GRAPH).chmod(0)
    if os.access(bundle / GRAPH, os.R_OK):
        pytest.skip("this user reads everything")
    with pytest.raises(BundleError, match=f"{GRAPH} cannot be opened: Permission denied"):
        Bundle.open(bundle)


slow_file_system = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
any_file = st.sampled_from([GRAPH, WEIGHTS, TOKENIZER])


@slow_file_system
@given(name=any_file, where=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_any_flipped_byte_is_refused(bundle: Path, name: str, where: float, mask: int) -> None:
    original = (bundle / name).read_bytes()
    flip(bundle / name, int(where * len(original)), mask)
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle)
    (bundle / name).write_bytes(original)


@slow_file_system
@given(where=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_a_flipped_byte_of_the_manifest_is_refused_or_seen(bundle: Path, where: float, mask: int) -> None:
    """Nothing lists the manifest's own hash: a changed name is another bundle, with another digest."""
    manifest = bundle / "bundle.json"
    original = manifest.read_bytes()
    flip(manifest, int(where * len(original)), mask)
    try:
        with Bundle.open(bundle) as opened:
            assert opened.digest != hashlib.sha256(original).hexdigest()
    except BundleError:
        pass
    manifest.write_bytes(original)


@slow_file_system
@given(name=st.sampled_from([GRAPH, WEIGHTS, TOKENIZER, "bundle.json"]), where=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_refused(bundle: Path, name: str, where: float) -> None:
    original = (bundle / name).read_bytes()
    kept = original[: int(where * len(original))]
    if kept.strip() == original.strip():
        return  # only the newline after bundle.json is gone
    (bundle / name).write_bytes(kept)
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle)
    (bundle / name).write_bytes(original)


# Writing --------------------------------------------------------------------------------------------------------------


def test_an_existing_bundle_is_replaced_only_with_force(bundle: Path) -> None:
    with pytest.raises(OutputError, match="--force"):
        write_bundle(bundle)
    with Bundle.open(bundle) as old:
        write_bundle(bundle, force=True, bias=BIAS + 1)
        with Bundle.open(bundle) as new:
            assert new.digest != old.digest
        assert old.map(WEIGHTS)[-BIAS.nbytes :].tobytes() == BIAS.tobytes()
    assert names(bundle.parent) == ["tiny"]


def test_a_damaged_bundle_can_be_replaced(bundle: Path) -> None:
    (bundle / WEIGHTS).unlink()
    write_bundle(bundle, force=True)
    Bundle.open(bundle).close()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Path.mkdir, id="empty folder"),
        pytest.param(lambda path: path.write_text("precious"), id="file"),
        pytest.param(lambda path: path.symlink_to("/etc"), id="link"),
        pytest.param(lambda path: (write_bundle(path), (path / "notes.txt").write_text("mine")), id="with more inside"),
        pytest.param(lambda path: (path.mkdir(), (path / "bundle.json").write_text("{}")), id="another bundle.json"),
    ],
)
def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path, make: Callable[[Path], object]) -> None:
    target = tmp_path / "target"
    make(target)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="target"):
        write_bundle(target, force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_leaving_without_save_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "tiny") as writer:
        writer.file(WEIGHTS).write_bytes(b"half")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "/x", "bundle.json", ".hidden", "a//b", ""])
def test_an_unfit_name_is_not_written(tmp_path: Path, name: str) -> None:
    with BundleWriter(tmp_path / "tiny") as writer, pytest.raises(UsageError, match="cannot be a file of a bundle"):
        writer.file(name)


def test_a_bundle_that_would_not_open_is_not_saved(bundle: Path) -> None:
    before = (bundle / "bundle.json").read_bytes()
    for changes, said in (
        ({"solver": Solver(name="euler", shift=float("nan"))}, "solver.shift"),
        ({"experts": (Expert(component="none"),)}, "no component 'none'"),
        ({"text": Text(tokenizer="missing.json", length=1, dim=1, cleaning=())}, "missing.json"),
    ):
        with pytest.raises(BundleError, match=said):
            write_bundle(bundle, force=True, **changes)
    assert (bundle / "bundle.json").read_bytes() == before
    assert names(bundle.parent) == ["tiny"]


@pytest.mark.parametrize("atomic", [True, False], ids=["renameat2", "rename"])
@pytest.mark.parametrize("failing", ["fsync", "rename", "second rename"])
def test_an_interrupted_save_leaves_the_old_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool, failing: str
) -> None:
    before = (bundle / "bundle.json").read_bytes()
    calls = 0

    def fail(*args: object) -> None:
        nonlocal calls
        calls += 1
        raise OSError(28, "No space left on device")

    rename = Path.rename

    def fail_second(source: Path, target: Path) -> Path:
        if source.suffix == ".new":
            fail()
        return rename(source, target)

    if not atomic:
        monkeypatch.setattr(_bundle_writer, "_UNSUPPORTED", {28})
    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(_bundle_writer, "_renameat2", fail)
        if not atomic:
            monkeypatch.setattr(Path, "rename", fail if failing == "rename" else fail_second)
    with pytest.raises(OutputError, match="tiny could not be written: No space left on device"):
        write_bundle(bundle, force=True, bias=BIAS + 1)
    assert calls > 0
    monkeypatch.undo()
    assert (bundle / "bundle.json").read_bytes() == before
    Bundle.open(bundle).close()
    assert names(bundle.parent) == ["tiny"]


def test_plain_renames_replace_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(_bundle_writer, "_renameat2", unsupported)
    before = (bundle / "bundle.json").read_bytes()
    write_bundle(bundle, force=True, bias=BIAS + 1)
    assert (bundle / "bundle.json").read_bytes() != before
    assert names(bundle.parent) == ["tiny"]


def test_the_next_writer_cleans_up_after_a_killed_one(bundle: Path) -> None:
    (bundle.with_name(".tiny.01234567.new")).mkdir()
    bundle.rename(bundle.with_name(".tiny.01234567.old"))
    with BundleWriter(bundle.with_name("other")):
        pass
    assert not bundle.exists()
    with pytest.raises(OutputError, match="--force"):
        BundleWriter(bundle)  # the old bundle is back
    Bundle.open(bundle).close()
    assert names(bundle.parent) == ["tiny"]


def test_a_link_among_the_files_is_not_saved(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "tiny") as writer:
        writer.file(WEIGHTS).symlink_to("/etc/passwd")
        with pytest.raises(BundleError, match=f"{WEIGHTS} is a symbolic link"):
            writer.save(a_manifest())


def test_two_writers_do_not_disturb_each_other(bundle: Path) -> None:
    with BundleWriter(bundle, force=True) as slow:
        slow.file(TOKENIZER).write_text("half")
        write_bundle(bundle, force=True, bias=BIAS + 1)
        assert slow.file(TOKENIZER).read_text() == "half"
    Bundle.open(bundle).close()


KILLER = """
    import os, random, signal, sys, time
    sys.path.insert(0, sys.argv[1])
    import test_bundle as t

    path = t.Path(sys.argv[2])
    rng = random.Random(0)
    digests = set()
    for _ in range(40):
        child = os.fork()
        if child == 0:
            while True:
                t.write_bundle(path, force=True, bias=t.BIAS + rng.randrange(9))
        time.sleep(rng.uniform(0.001, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with t.Bundle.open(path) as opened:
            digests.add(opened.digest)
        rng.random()
    t.write_bundle(path, force=True)
    assert os.listdir(path.parent) == [path.name], os.listdir(path.parent)
    print(len(digests))
"""


def test_killed_at_any_moment_the_path_holds_a_whole_bundle(bundle: Path) -> None:
    script = textwrap.dedent(KILLER)
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(bundle)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 1  # some of the writers got to the end before they were killed
