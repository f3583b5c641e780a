"""Weights that would fill the memory are read where they are mapped, and give what a copy of them gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kinograph.bundle import Bundle
from kinograph.engines import mapped, ort
from kinograph.engines.host import NUMPY_DTYPES
from kinograph.manifest import resolve_shape
from kinograph.runtime.binding import Binding
from kinograph.runtime.locate import find_bundle

AXES = {"L": 5, "B": 2, "F": 1, "H": 8, "W": 8}


@pytest.mark.parametrize(
    ("name", "component", "precision", "taken"),
    [
        ("starter", "text_encoder", "fp32", {"float"}),
        ("starter-few-steps", "text_encoder", "fp16", {"float16", "float"}),
        ("starter-few-steps", "step", "fp16", {"float16", "float"}),
        ("starter-few-steps", "decoder_first", "fp16", set()),  # of convolutions, which keep their copies
    ],
)
def test_large_weights_are_not_copied_and_compute_the_same(
    name: str, component: str, precision: str, taken: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bundle.open(find_bundle(name)) as bundle:
        assert read_in_place(bundle, component, precision, monkeypatch) == taken


@pytest.mark.export
def test_so_are_those_of_bfloat16(tiny_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_LEAST", 0)
    with Bundle.open(tiny_bundle("ti2v", "bf16")) as bundle:
        assert read_in_place(bundle, "step", "bf16", monkeypatch) == {"bfloat16", "float"}


def read_in_place(bundle: Bundle, component: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The types of the weights that are not copied, where none are, and all where there is memory for them.

    Both ways the component has to give the same.
    """
    made = []
    with ort.OrtDevice(threads=1) as device:
        for share in (ort._COPIED_SHARE, 0.0):
            monkeypatch.setattr(ort, "_COPIED_SHARE", share)
            engine = device.open(bundle, component, precision)
            noise = np.random.default_rng(0)
            with Binding(device, engine, AXES) as binding:
                for tensor in engine.inputs.values():
                    shape, dtype = resolve_shape(tensor.shape, AXES), NUMPY_DTYPES[tensor.dtype]
                    values = noise.normal(size=shape) if dtype == np.float32 else np.ones(shape)
                    binding.write(tensor.name, values.astype(dtype))
                for _ in range(2):
                    binding.run()
                made.append(binding[next(iter(engine.outputs))].read().astype(np.float32))
            types = {value.name: value.type for value in engine._session.get_inputs()}
            found = {
                kind.removeprefix("tensor(").rstrip(")") for name, kind in types.items() if name not in engine.inputs
            }
            assert not found or share == 0.0
    assert np.abs(made[0] - made[1]).max() <= 1e-5 * max(1, np.abs(made[0]).max())
    return found


_MULTIPLIES = """
from pathlib import Path
import numpy as np, onnx_ir as ir, onnxruntime as ort, sys
from kinograph.engines.mapped import halves_as_inputs, take_halves
from kinograph.engines.rewrites.halves import float16_to_float32

def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) << 10

count, side = 24, 1024
weights = {f"w{i}": np.eye(side, dtype=np.float16) for i in range(count)}
x = ir.Value(name="x", shape=ir.Shape(("N", side)), type=ir.TensorType(ir.DataType.FLOAT16))
table = {}
for name, array in weights.items():
    tensor = ir.ExternalTensor("mapped", 0, array.nbytes, ir.DataType.FLOAT16, shape=ir.Shape(array.shape), name=name)
    table[name] = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(ir.DataType.FLOAT16), const_value=tensor)
nodes, value = [], x
for name in weights:
    for operator, inputs in (("MatMul", [value, table[name]]), ("Sigmoid", None), ("Erf", None)):
        node = ir.node(operator, inputs or [value], name=f"{name}.{operator}")
        value = node.outputs[0]
        value.name, value.dtype, value.shape = node.name, ir.DataType.FLOAT16, ir.Shape(("N", side))
        nodes.append(node)
graph = ir.Graph([x], [value], nodes=nodes, initializers=table.values(), opset_imports={"": 20})
model = ir.Model(graph, ir_version=10)
halves = take_halves(model, weights)
assert len(halves) == count and not weights
float16_to_float32(model, weights)
halves_as_inputs(model, halves)
options = ort.SessionOptions()
options.enable_mem_pattern = False
session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
feed = {"x": np.ones((2, side), np.float32)} | halves
session.run(None, feed)
print(session.run(None, feed)[0].shape, resident())
"""


def test_one_weight_at_a_time_is_widened() -> None:
    """Of 24 of 4 MB each, widened: all at once would be 100 MB beside what a process takes that only imports."""
    done = subprocess.run([sys.executable, "-c", _MULTIPLIES], capture_output=True, text=True, check=True)
    idle = subprocess.run(
        [sys.executable, "-c", _MULTIPLIES.split("count, side")[0] + "print(resident())"],
        capture_output=True,
        text=True,
        check=True,
    )
    taken = int(done.stdout.split()[-1]) - int(idle.stdout.split()[-1])
    weights = 24 * (1024 * 1024 * 2)  # as they are, in this process
    assert taken - weights < 40e6, f"{(taken - weights) / 1e6:.0f} MB"
