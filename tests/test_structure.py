"""What may import what, what generating needs installed, and that it needs no network."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Where torch is at home; nothing else may need it.
_EXPORTING = frozenset({"export", "starter"})
_NOT_PACKAGED = frozenset({"tests", "benchmarks", "docs", "examples", "build"})
_FORBIDDEN = ("torch", "diffusers", "transformers", "optimum", "onnxscript")

_GROUND = frozenset({"errors", "manifest", "bundle"})
# What each part of the package may import of the others; "kinograph" is the public API, names out of the runtime. A
# part not named here is above all of them: it may import anything, and nobody of these may import it.
_MAY_IMPORT = {
    "errors": frozenset[str](),
    "manifest": frozenset[str](),
    "bundle": _GROUND,
    "engines": _GROUND,
    "runtime": _GROUND | {"engines"},
    "kinograph": _GROUND | {"runtime"},
    "calibration": _GROUND | {"engines", "runtime", "kinograph"},
    "export": _GROUND | {"engines", "runtime", "kinograph"},
    "starter": _GROUND | {"engines", "runtime", "export", "kinograph"},
}

_HEAVY = ("numpy", "onnx", "onnxruntime", "msgspec", "av", "PIL", "tokenizers", "safetensors", "click", "rich", "ftfy")


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the package, by its name."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in _NOT_PACKAGED or any(part.startswith(".") for part in parts):
            continue
        yield ".".join(("kinograph", *(part for part in parts if part != "__init__"))), path


MODULES = dict(sources())


def part_of(module: str) -> str:
    """The part of the package that `module` belongs to; the package itself is "kinograph"."""
    return module.split(".")[1] if "." in module else module


def imports_of(module: str) -> Iterator[str]:
    """The modules of ours that `module` imports anywhere, also inside functions and for type checking."""
    for node in ast.walk(ast.parse(MODULES[module].read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "kinograph")
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{module} has a relative import, which this test does not follow")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kinograph":
            base = node.module or ""
            inner = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else base for name in inner)


def run(script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What `script` prints in a fresh interpreter. Fails the test with its errors if it does not end well."""
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_was_found() -> None:
    assert {"kinograph", "kinograph.bundle", "kinograph.engines", "kinograph.runtime"} <= MODULES.keys()


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) in _MAY_IMPORT])
def test_imports_point_one_way(module: str) -> None:
    part = part_of(module)
    wrong = {name for name in imports_of(module) if part_of(name) not in _MAY_IMPORT[part] | {part}}
    assert not wrong, f"{module} belongs to {part}, and imports {', '.join(sorted(wrong))}"


def test_nobody_imports_the_command_line() -> None:
    assert [name for name in MODULES if "kinograph.cli" in imports_of(name)] == ["kinograph.__main__"]


def test_everything_but_export_imports_without_torch() -> None:
    script = """
        import importlib, json, sys, traceback

        forbidden, modules = map(json.loads, sys.argv[1:])

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in forbidden:
                    raise ImportError(f"{name} is not here")

        sys.meta_path.insert(0, Absent())
        failed = []
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception:
                failed.append(f"{module}: {traceback.format_exc().splitlines()[-1]}")
        print(json.dumps(failed))
    """
    modules = [name for name in MODULES if part_of(name) not in _EXPORTING and not name.endswith(".__main__")]
    assert json.loads(run(script, json.dumps(_FORBIDDEN), json.dumps(modules))) == []


def test_importing_kinograph_loads_nothing_heavy() -> None:
    script = """
        import json, sys
        before = set(sys.modules)  # what the environment's own start-up brings along
        import kinograph
        print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
    """
    assert set(json.loads(run(script))).isdisjoint((*_HEAVY, *_FORBIDDEN))


@pytest.mark.parametrize("module", ["errors", "manifest"])
def test_the_ground_floor_needs_no_engine(module: str) -> None:
    script = f"""
        import json, sys
        before = set(sys.modules)
        import kinograph.{module}
        print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
    """
    assert set(json.loads(run(script))).isdisjoint({"numpy", "onnx", "onnxruntime", *_FORBIDDEN})


def test_every_public_name_is_there() -> None:
    script = """
        import kinograph
        for name in kinograph.__all__:
            getattr(kinograph, name)
    """
    run(script)


@pytest.mark.skipif(
    not (ROOT / "starter" / "bundle" / "bundle.json").exists(),
    reason="the starter bundle is not built in this checkout",
)
def test_generating_opens_no_socket() -> None:
    script = """
        import socket, sys

        def no_network(event, arguments):  # sees what Python's own modules do in C, too
            if event.startswith("socket."):
                raise RuntimeError(f"{event} {arguments}")

        class NoSocket:
            def __init__(self, *arguments, **options):
                raise RuntimeError("a socket was opened")

        socket.socket = NoSocket
        sys.addaudithook(no_network)
        import kinograph

        with kinograph.load() as pipe:
            video = pipe("a red ball", num_frames=5, num_inference_steps=1)
        print(video.frames.shape[0])
    """
    assert run(script).strip() == "5"


def test_onnx_runtime_reports_nothing(tmp_path: Path) -> None:
    """It keeps in the home folder what it has not sent yet, except where the environment looks like that of a test."""
    script = """
        import kinograph.engines.ort
        import onnx
        import onnxruntime

        graph = "<ir_version: 10, opset_import: ['': 21]> g (float[1] x) => (float[1] y) { y = Relu(x) }"
        model = onnx.parser.parse_model(graph.replace("'", '"'))
        print(onnxruntime.InferenceSession(model.SerializeToString()).get_inputs()[0].name)
    """
    assert run(script, environment={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}).strip() == "x"
    assert list(tmp_path.rglob("*")) == []
