"""Every component of every kind of model becomes an engine, without a GPU, by the way that `kinograph build` takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from kinograph.bundle import Bundle
from kinograph.calibration import RECIPES
from kinograph.cli import main
from kinograph.console import Console
from kinograph.console.build import BuildJob, build
from kinograph.engines.cache import EngineCache

# Which generation a precision is built for: all pairs would take an hour, and the graph is the same for each. Exporting
# takes most of the time, and other tests export in fp32 anyway, and look at the halves of these.
_PAIRS = [
    ("t2v", "fp32", 120),
    ("i2v", "fp16", 89),
    ("ti2v", "bf16", 120),
    ("t2v-a14b", "fp16", 86),
    ("i2v-a14b", "fp32", 86),
]


@pytest.fixture(autouse=True)
def _wheels() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")


def job(bundle: Path | None, *capabilities: int, variant: str | None = None) -> BuildJob:
    return BuildJob(
        bundle=None if bundle is None else str(bundle),
        output=None,
        target="rtx",
        capabilities=capabilities,
        variant=variant,
        width=None,
        height=None,
        num_frames=None,
        workspace=None,
        force=False,
    )


@pytest.mark.parametrize(("kind", "precision", "capability"), _PAIRS)
def test_every_component_builds_and_is_found_again(
    tmp_path: Path, tiny_bundle: Callable[..., Path], kind: str, precision: str, capability: int
) -> None:
    bundle, cache = tiny_bundle(kind, precision), EngineCache(tmp_path)
    built = build(job(bundle, capability), Console(None), cache)
    with Bundle.open(bundle) as opened:
        assert [engine["component"] for engine in built] == list(opened.manifest.components)
    assert all(engine["built"] and engine["bytes"] > 10_000 for engine in built)
    assert not any(engine["built"] for engine in build(job(bundle, capability), Console(None), cache))
    for engine in built:
        if engine["component"].startswith("step") and precision != "fp32":
            assert engine["fused_attention"], "16-bit attention is one kernel"


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory, starter_copy: Callable[..., Path]) -> Path:
    """The few-step starter with a variant of every recipe, calibrated as little as may be."""
    folder = starter_copy(tmp_path_factory.mktemp("quantised") / "starter", name="starter-few-steps", size=64, frames=9)
    short = ["--runs", "1", "--videos", "1", "--judged", "1", "--no-scan", "--force", "--quiet"]
    for recipe in RECIPES:
        assert main(["calibrate", str(folder), "--recipe", recipe, *short]) == 0
    return folder


@pytest.mark.parametrize(
    ("precision", "capabilities"),
    [("int8", (86, 120)), ("fp8", (89, 120)), ("mxfp8", (120,)), ("nvfp4", (120,)), ("int4-weights", (80, 89))],
)
def test_quantised_variants_build(
    tmp_path: Path, quantised: Path, precision: str, capabilities: tuple[int, ...]
) -> None:
    built = build(job(quantised, *capabilities, variant=precision), Console(None), EngineCache(tmp_path))
    assert {(engine["precision"], engine["compute_capability"]) for engine in built} >= {
        (precision, capability) for capability in capabilities
    }
    steps = [engine for engine in built if engine["component"] == "step" and engine["precision"] == precision]
    assert all(engine["fused_attention"] for engine in steps)


def test_engines_go_into_the_bundle(
    tmp_path: Path, quantised: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINOGRAPH_CACHE", str(tmp_path))
    assert main(["build", str(quantised), "--sm", "89", "--variant", "int8", "--into-bundle", "-q"]) == 0
    assert main(["verify", str(quantised)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(quantised)]) == 0
    assert "fused attention" in capsys.readouterr().out
    assert main(["build", "--sm", "89", "--into-bundle", "-q"]) == 2
    assert "Copy it first" in capsys.readouterr().err


def test_what_has_more_weights_than_the_budget_streams(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINOGRAPH_CACHE", str(tmp_path))
    assert main(["build", "--sm", "89", "--weight-budget", "8", "--json", "-q"]) == 0
    built = {one["component"]: one["streams_weights"] for one in json.loads(capsys.readouterr().out)["engines"]}
    assert built.pop("step") and not any(built.values())


def test_what_a_gpu_cannot_compute_is_refused(
    tmp_path: Path, quantised: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINOGRAPH_CACHE", str(tmp_path))
    for precision, capability, why in (
        ("fp8", "86", "fp8 needs compute capability 89 or later, and 86"),
        ("nvfp4", "89", "nvfp4 needs compute capability 100 or later, and 89"),
        ("mxfp8", "89", "mxfp8 needs compute capability 100 or later, and 89"),
        ("int8-dynamic", "120", "int8-dynamic is for CPUs"),
    ):
        assert main(["build", str(quantised), "--sm", capability, "--variant", precision, "-q"]) == 2
        assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--sm", "70"], 2, "compute capability 70 cannot be built for; expected one of: 75, 80, 86"),
        (["--sm", "ada"], 2, "not a compute capability such as 89"),
        (["--target", "tensorrt"], 2, "It comes with JetPack"),
        (["--sm", "89", "--later-versions"], 2, "--later-versions is for --target tensorrt"),
        (["--sm", "89", "--gpus", "ampere-plus"], 2, "--gpus is for --target tensorrt"),
        (["--sm", "89", "--size", "50x50"], 3, "nearest: 48x48"),
        (["--sm", "89", "--frames", "6"], 3, "Use --frames"),
        (["--sm", "89", "--variant", "int3"], 2, "no variant 'int3'"),
        ([], 2, "Use --sm, such as --sm 89 for Ada"),
    ],
)
def test_what_cannot_be_built_says_what_can(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.setenv("KINOGRAPH_CACHE", str(tmp_path))
    assert main(["build", "-q", *options]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.engine"))


def test_the_cache_is_listed_and_emptied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINOGRAPH_CACHE", str(tmp_path))
    build(job(None, 89), Console(None))
    assert main(["build", "--list"]) == 0
    assert "step           fp32  sm89" in capsys.readouterr().out
    assert main(["build", "--sm", "89", "-o", str(tmp_path / "out"), "-q"]) == 0
    assert "was there" in capsys.readouterr().out
    assert (tmp_path / "out" / "step.fp32.sm89.engine").stat().st_size > 1_000_000
    assert main(["build", "--clean"]) == 0
    assert capsys.readouterr().out.count("removed") == 6
    assert EngineCache().cards() == []


def test_the_gpu_that_is_asked_for_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without --sm, engines are for the GPU at hand."""
    monkeypatch.setattr(
        "kinograph.engines.cuda.CudaGpu",
        lambda: SimpleNamespace(capability=89, name="GPU", close=lambda: None),
    )
    built = build(job(None), Console(None), EngineCache(tmp_path))
    assert {engine["compute_capability"] for engine in built} == {89}
