"""The manifest survives a round trip, and its names and shapes mean what they say."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinograph.bundle.manifest_check import ManifestError, name_problem, parse_manifest
from kinograph.manifest import (
    Component,
    Conditioning,
    Defaults,
    Expert,
    File,
    Geometry,
    Manifest,
    Parity,
    Solver,
    Source,
    Tensor,
    Text,
    Variant,
    resolve_shape,
)

positive = st.floats(min_value=1e-6, max_value=1e6)
counts = st.integers(1, 1 << 20)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.from_regex(r"[a-z_][a-z0-9_]{0,12}", fullmatch=True)
axes = st.one_of(st.integers(1, 1 << 40), st.from_regex(r"([1-9][0-9]{0,5}\*)?[BLFHW]", fullmatch=True))
shapes = st.lists(axes, max_size=5).map(tuple)
parities = st.none() | st.builds(Parity, max_abs=positive, rms=positive, scale=positive, engine=texts)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """A manifest of which every field varies that may, with cross-references that hold."""
    files = {"tokenizer.json": File(size=1, sha256="0" * 64)}
    components = {}
    for component in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        folder = f"{component}/fp32"
        tensors = draw(st.lists(names.filter(lambda n: not n.startswith("next_")), min_size=1, max_size=4, unique=True))
        declared = tuple(Tensor(name=name, dtype="float32", shape=draw(shapes)) for name in tensors)
        variant = Variant(
            graph=f"{folder}/model.onnx",
            weights=(f"{folder}/w",),
            inputs=declared[1:],
            outputs=(declared[0],),
            parity=draw(parities),
        )
        for name in (variant.graph, *variant.weights):
            files[name] = File(
                size=draw(st.integers(0, 1 << 40)), sha256=draw(st.from_regex(r"[0-9a-f]{64}", fullmatch=True))
            )
        components[component] = Component(variants={"fp32": variant})
    return Manifest(
        format_version=1,
        name=draw(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)),
        family="test",
        source=Source(
            checkpoint=draw(texts), pipeline=draw(texts), exporter=draw(texts), licence=draw(st.none() | texts)
        ),
        geometry=draw(
            st.builds(Geometry, channels=counts, spatial=counts, temporal=counts, patch=counts, positions=counts)
        ),
        defaults=Defaults(width=8, height=8, num_frames=5, fps=draw(positive), num_inference_steps=draw(counts)),
        solver=draw(st.builds(Solver, name=st.sampled_from(["euler", "unipc", "dpmpp-2m"]), shift=positive)),
        conditioning=Conditioning(kind=draw(st.sampled_from(["clean", "noised", "channels"]))),
        text=Text(tokenizer="tokenizer.json", length=draw(counts), dim=draw(counts), cleaning=("ftfy", "html")),
        experts=(Expert(component=draw(st.sampled_from(sorted(components))), guidance_scale=draw(positive)),),
        components=components,
        files=files,
    )


A_MANIFEST = Manifest(
    format_version=1,
    name="tiny",
    family="test",
    source=Source(checkpoint="none", pipeline="TestPipeline", exporter="tests"),
    geometry=Geometry(channels=3, spatial=8, temporal=4, patch=2, positions=1024),
    defaults=Defaults(width=32, height=32, num_frames=5, fps=8.0, num_inference_steps=2),
    solver=Solver(name="euler"),
    conditioning=Conditioning(kind="clean"),
    text=Text(tokenizer="tokenizer.json", length=8, dim=4, cleaning=()),
    experts=(Expert(component="step"),),
    components={
        "step": Component(
            variants={
                "fp32": Variant(
                    graph="step/model.onnx",
                    weights=(),
                    inputs=(Tensor(name="sample", dtype="float32", shape=(1, "F")),),
                    outputs=(Tensor(name="next_sample", dtype="float32", shape=(1, "F")),),
                )
            }
        )
    },
    files={name: File(size=1, sha256="0" * 64) for name in ("tokenizer.json", "step/model.onnx")},
)


def problems_of(document: object) -> list[str]:
    try:
        parse_manifest(json.dumps(document).encode())
    except ManifestError as exc:
        return exc.problems
    return []


@settings(max_examples=50, deadline=None)
@given(manifests())
def test_a_manifest_survives_the_round_trip(manifest: Manifest) -> None:
    assert parse_manifest(msgspec.json.encode(manifest)) == manifest


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_no_value_in_any_field_crashes(value: Any) -> None:
    document = msgspec.to_builtins(A_MANIFEST)
    for key in document:
        problems_of(document | {key: value})
    for key in document["solver"]:
        problems_of(document | {"solver": {**document["solver"], key: value}})


@given(st.binary(max_size=200))
def test_no_bytes_crash(data: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sha256", "0" * 64 + "\n"),
        ("sha256", "0" * 63),
        ("sha256", "A" * 64),
        ("size", -1),
        ("size", 1.5),
        ("size", True),
    ],
)
def test_a_bad_file_entry_is_refused(name: str, value: object) -> None:
    document = msgspec.to_builtins(A_MANIFEST)
    document["files"]["tokenizer.json"][name] = value
    assert any(f"files.tokenizer.json.{name}: " in problem for problem in problems_of(document))


@pytest.mark.parametrize("axis", ["b", "0*H", "8*", "H*8", "H\n", "٣*H", 0, -1, 1.5, None])
def test_a_bad_axis_is_refused(axis: object) -> None:
    document = msgspec.to_builtins(A_MANIFEST)
    document["components"]["step"]["variants"]["fp32"]["inputs"][0]["shape"] = [axis]
    assert "inputs[0].shape[0]: " in problems_of(document)[0]


def test_what_feeds_an_input_must_fit_it() -> None:
    document = msgspec.to_builtins(A_MANIFEST)
    document["components"]["step"]["variants"]["fp32"]["outputs"][0]["shape"] = [2, "F"]
    assert "the output 'next_sample' is" in problems_of(document)[0]


def test_two_tensors_of_one_name_are_refused() -> None:
    document = msgspec.to_builtins(A_MANIFEST)
    document["components"]["step"]["variants"]["fp32"]["outputs"][0]["name"] = "sample"
    assert "two tensors called 'sample'" in problems_of(document)[0]


def test_experts_are_in_order() -> None:
    document = msgspec.to_builtins(A_MANIFEST)
    document["experts"] = [{"component": "step", "boundary": 0}, {"component": "step", "boundary": 875}]
    assert "each below the one before" in problems_of(document)[0]


@pytest.mark.parametrize("name", ["a", "a/b.onnx", "Größe/モデル.bin", "a b", "x.so.txt", "also"])
def test_a_plain_name_is_fine(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    ["", "/", "/a", "a/", "a//b", "./a", "a/..", "a\\b", "a\nb", "a\0", "\u202egnp.x", "\ud800", ".a", "a/.b", "x.DLL"],
)
def test_an_unfit_name_is_not(name: str) -> None:
    assert name_problem(name)


def test_resolve_shape() -> None:
    assert resolve_shape((1, "8*H", "W"), {"H": 4, "W": 5}) == (1, 32, 5)
    for axis in ("F", "8*F", "-1*W", "٣*W", "W\n"):
        with pytest.raises(KeyError):
            resolve_shape((axis,), {"W": 5})
