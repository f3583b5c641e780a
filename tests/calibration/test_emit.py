"""Quantised graphs against numpy: the products and convolutions that are written are those that were planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from kinograph.calibration.block_numerics import int4_scales, int4_values
from kinograph.calibration.collect import Statistics
from kinograph.calibration.emit import emit
from kinograph.calibration.layers import Convolution, Group
from kinograph.calibration.numerics import signal_to_noise
from kinograph.calibration.recipes import RECIPES
from kinograph.calibration.recipes.blocks import INT4_WEIGHTS
from kinograph.calibration.recipes.products import Products
from kinograph.calibration.store import store_blocks
from kinograph.engines.rewrites.blocks import blocks_to_float32

INT8, FP8 = RECIPES["int8"], RECIPES["fp8"]
CONTROL = replace(INT8, smooth=False, cut=False, fine=False)


def statistics(rows: np.ndarray) -> tuple[Statistics, Statistics]:
    halves = (rows[::2], rows[1::2])
    one, other = (Statistics(half.min(0, keepdims=True), half.max(0, keepdims=True), [half]) for half in halves)
    return one, other


def graph_of(nodes: list[Any], inputs: list[int | str], outputs: list[str], weights: dict[str, np.ndarray]) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}_{i}" for i in range(len(inputs))])
            for name in outputs
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    blocks_to_float32(model, {})  # as the engine does
    proto = ir.to_proto(model)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the engine has it
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


@pytest.fixture
def products() -> tuple[ir.Model, Group, dict[str, np.ndarray], np.ndarray]:
    """Two products of one activation, of whose channels one is large."""
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=(64, n)).astype(np.float32) for name, n in (("v", 8), ("w", 12))}
    nodes = [helper.make_node("MatMul", ["x", name], [f"y_{name}"], name=f"times_{name}") for name in weights]
    x = random.normal(size=(2, 5, 64)).astype(np.float32)
    x[..., 3] *= 30
    group = Group("x", ("times_v", "times_w"), ("v", "w"), 64)
    return graph_of(nodes, [2, "S", 64], ["y_v", "y_w"], weights), group, weights, x


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if isinstance(recipe, Products)])
@pytest.mark.parametrize("control", [False, True])
def test_products_are_the_planned_ones(products: Any, name: str, control: bool) -> None:
    model, group, weights, x = products
    recipe = RECIPES[name].control if control else RECIPES[name]
    assert recipe.takes(group)
    plan = recipe.plan(group, statistics(x.reshape(-1, 64)), list(weights.values()))
    assert recipe.smooth or plan.smoothing is None
    divided = x if plan.smoothing is None else x * (1 / plan.smoothing).astype(np.float32)
    expected = [plan.form.there_and_back(divided) @ w.floats for w in plan.weights]
    for got, wanted in zip(run(emit(model, [plan]), x), expected, strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_the_recipe_beats_its_control(products: Any) -> None:
    model, group, weights, x = products
    exact = np.concatenate(run(model, x), axis=-1)
    found = []
    for recipe in (INT8, CONTROL):
        plan = recipe.plan(group, statistics(x.reshape(-1, 64)), list(weights.values()))
        found.append(signal_to_noise(exact, np.concatenate(run(emit(model, [plan]), x), axis=-1)))
    assert found[0] > found[1] + 3


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("sides", [(5, 8, 8), (8, 8)], ids=["time and space", "space"])
def test_convolutions_are_the_planned_ones(with_bias: bool, sides: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    weight = random.normal(size=(6, 4, *[3 for _ in sides])).astype(np.float32)
    weights = {"w": weight} | ({"b": random.normal(size=6).astype(np.float32)} if with_bias else {})
    node = helper.make_node("Conv", ["x", *weights], ["y"], name="conv", pads=[1] * (2 * len(sides)))
    model = graph_of([node], [1, 4, *sides], ["y"], weights)
    x = random.normal(size=(1, 4, *sides)).astype(np.float32)
    (exact,) = run(model, x)
    layer = Convolution("x", "conv", "w", "b" if with_bias else None, "y", 6)
    plan = INT8.plan_convolution(
        layer, statistics(x.reshape(-1, 1)), statistics(exact.reshape(-1, 1)), weight, weights.get("b")
    )
    formed = weights | {"w": plan.weight.values * plan.weight.scale.reshape(-1, 1, *[1 for _ in sides])}
    if plan.bias is not None:
        formed["b"] = (plan.bias * (plan.weight.scale * plan.form.scale)).astype(np.float32)
    inner = graph_of([node], [1, 4, *sides], ["y"], formed)
    (wanted,) = run(inner, plan.form.there_and_back(x))
    (got,) = run(emit(model, [plan]), x)
    assert np.abs(got - plan.output.there_and_back(wanted)).max() <= 1.01 * plan.output.scale  # ties may round apart
    assert signal_to_noise(exact, got) > 30


def test_convolutions_that_make_few_channels_stay_in_float() -> None:
    assert not INT8.takes(Convolution("x", "conv", "w", None, "y", 16))
    assert INT8.takes(Convolution("x", "conv", "w", None, "y", 17))


def test_a_model_is_copied_not_changed(products: Any) -> None:
    model, group, weights, x = products
    before = ir.to_proto(model).SerializeToString()
    emit(model, [INT8.plan(group, statistics(x.reshape(-1, 64)), list(weights.values()))])
    assert ir.to_proto(model).SerializeToString() == before


def test_an_activation_that_was_always_zero_stays_finite(products: Any) -> None:
    model, group, weights, x = products
    nothing = np.zeros((4, 64), np.float32)
    plan = INT8.plan(group, statistics(nothing), list(weights.values()))
    for got in run(emit(model, [plan]), x):
        assert np.isfinite(got).all()


@pytest.mark.parametrize(("rows", "columns"), [(64, 96), (96, 40), (256, 33)])
def test_products_with_weights_in_4_bits_are_those_of_numpy(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    weight = rng.normal(size=(rows, columns)).astype(np.float32)
    x = rng.normal(size=(2, 5, rows)).astype(np.float32)
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], [2, 5, rows], ["y"], {"w": weight}
    )
    store_blocks(model, {"w": weight}, INT4_WEIGHTS)
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul"]
    stored = model.graph.initializers["w.int4"]
    assert stored.dtype == ir.DataType.INT4 and stored.const_value.nbytes == rows * columns // 2
    scales = int4_scales(weight, 32)
    expected = x @ (int4_values(weight, scales) * np.repeat(scales, 32, axis=0))
    (got,) = run(model, x)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    assert signal_to_noise(x @ weight, expected) > 18


def test_weights_that_do_not_divide_into_blocks_are_in_8_bits() -> None:
    weight = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], [2, 5, 50], ["y"], {"w": weight})
    store_blocks(model, {"w": weight}, INT4_WEIGHTS)
    assert list(model.graph.initializers) == ["w.int8", "w.scale"]
