"""Nothing but what was written opens."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tampering import (
    MAX_GROWTH_BYTES,
    Tamper,
    a_branch,
    a_constant,
    a_socket,
    a_sparse_constant,
    an_operator,
    edited,
    external,
    field,
    flip,
    functions,
    graph_output,
    graphed,
    grown_by,
    listed,
    move_and_link,
    outside,
    put,
    renamed,
    replaced,
    reseal,
    shaped,
    sparse_file,
    sparse_outside,
    tokenizer,
    with_text,
)
from tiny_bundles import GRAPH, TOKENIZER, WEIGHTS

from kinograph.bundle import Bundle
from kinograph.errors import BundleError

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
    (
        "three-experts",
        field("experts", [{"component": "step", "boundary": boundary} for boundary in (900, 500, 0)]),
        "experts: there are 3, expected at most 2",
    ),
    ("gap-in-experts", field("experts", [{"component": "step", "boundary": 1}]), "no timestep may be left over"),
    ("no-image-encoder", field("conditioning.image_tokens", True), "'image_encoder'"),
]


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

    assert grown_by(refused) < MAX_GROWTH_BYTES


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
