"""Every format against ONNX's own reference, and what degenerate values become."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from kinograph.calibration.numerics import (
    Affine,
    Float8,
    affine,
    as_floats,
    dequantised,
    float8,
    float8_weight,
    nearest_float,
    quantised,
    quantised_weight,
    signal_to_noise,
)
from kinograph.errors import NumericError

FINITE = st.floats(-1e4, 1e4, width=32)


def reference(x: np.ndarray, form: Affine) -> tuple[np.ndarray, np.ndarray]:
    """What ONNX's QuantizeLinear and DequantizeLinear make of `x`."""
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [form.scale])
    zero = helper.make_tensor("zero", TensorProto.UINT8, [], [form.zero_point])
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "there_and_back",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [
            helper.make_tensor_value_info("q", TensorProto.UINT8, list(x.shape)),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, list(x.shape)),
        ],
        [scale, zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(model)
    q, y = ReferenceEvaluator(model).run(None, {"x": x})
    return q, y


@settings(deadline=None, max_examples=40)
@given(arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=6), elements=FINITE), FINITE, FINITE)
def test_affine_is_what_onnx_does(x: np.ndarray, one: float, other: float) -> None:
    form = affine(min(one, other), max(one, other))
    assume(np.abs(x).max() < 2**30 * float(form.scale))  # beyond, the reference itself overflows
    q, y = reference(x, form)
    assert np.array_equal(quantised(x, form), q)
    assert np.allclose(dequantised(q, form), y, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=60)
@given(FINITE, FINITE, st.floats(0, 1))
def test_what_is_in_range_is_off_by_half_a_step_at_most(one: float, other: float, share: float) -> None:
    low, high = min(one, other, 0.0), max(one, other, 0.0)
    form = affine(low, high)
    x = np.float32(low + share * (high - low))
    assert abs(float(form.there_and_back(x)) - float(x)) <= 1.001 * form.scale  # a rounded zero point costs up to half
    assert form.there_and_back(np.float32(0)) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_ranges_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(NumericError, match="cannot be quantised"):
        affine(0.0, bad)
    with pytest.raises(NumericError, match="NaN or infinity"):
        quantised_weight(np.array([[1.0, bad]], np.float32), 1)


def test_nothing_but_zeros_stays_so() -> None:
    assert affine(0.0, 0.0) == Affine(1.0, 0)
    weight = quantised_weight(np.zeros((3, 2), np.float32), 1)
    assert not weight.values.any() and (weight.scale == 1).all()


def test_one_outlier_costs_only_its_channel() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    spoilt = weight.copy()
    spoilt[0, 0] = 1e6
    plain, form = quantised_weight(weight, 1), quantised_weight(spoilt, 1)
    assert np.array_equal(plain.values[:, 1:], form.values[:, 1:])
    assert form.values[0, 0] == 127 and not form.values[1:, 0].any()


@settings(deadline=None, max_examples=40)
@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=5), elements=FINITE), st.data())
def test_weights_are_off_by_half_a_step_at_most(weight: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-weight.ndim, weight.ndim - 1))
    form = quantised_weight(weight, axis)
    scale = np.moveaxis(np.broadcast_to(form.scale, (*[1] * (weight.ndim - 1), len(form.scale))), -1, axis)
    assert (np.abs(form.values * scale - weight) <= 0.5001 * scale + 1e-30).all()
    assert np.abs(form.values.astype(int)).max(initial=0) <= 127


def test_signal_to_noise_in_decibels() -> None:
    x = np.array([3.0, 4.0])
    assert signal_to_noise(x, x) == 120
    assert signal_to_noise(x, 1.1 * x) == pytest.approx(20)
    assert signal_to_noise(np.zeros(2), x) == 0


@given(x=arrays(np.float32, array_shapes(max_dims=3, max_side=6), elements=FINITE))
@settings(max_examples=60, deadline=None)
def test_float8_is_what_onnx_says(x: np.ndarray) -> None:
    form = float8(float(x.min()), float(x.max()))
    session = ort.InferenceSession(_float8_model(form, x.ndim), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": x})
    got = form.there_and_back(x)
    assert np.abs(got - wanted).max(initial=0) <= 1e-5 * max(1.0, float(np.abs(x).max(initial=0)))
    largest = max(float(np.abs(x).max(initial=0)), 1e-30)
    assert np.abs(got - x).max(initial=0) <= largest / 16 * 1.001 + 1e-30  # three bits behind the first


def _float8_model(form: Float8, rank: int) -> bytes:
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [form.scale])
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    axes = [f"a{i}" for i in range(rank)]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)] for name in ("x", "y"))
    graph = helper.make_graph(nodes, "there_and_back", inputs, outputs, [scale, zero])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


@given(
    weight=arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=FINITE), axis=st.integers(0, 1)
)
@settings(max_examples=60, deadline=None)
def test_float8_weights_reach_their_largest(weight: np.ndarray, axis: int) -> None:
    formed = float8_weight(weight, axis)
    back = formed.values.astype(np.float32) * np.expand_dims(formed.scale, 1 - axis)
    largest = np.abs(weight).max(axis=1 - axis, keepdims=True)
    assert (np.abs(back - weight) <= largest / 16 * 1.001 + 1e-6).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_float8_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(NumericError, match="cannot be quantised"):
        float8(0.0, bad)
    with pytest.raises(NumericError, match="NaN or infinity"):
        float8_weight(np.array([[1.0, bad]], np.float32), 1)
    assert float8(0.0, 0.0) == Float8(1.0)


@pytest.mark.parametrize(
    ("dtype", "bits", "least"), [(ml_dtypes.float8_e4m3fn, 3, -6), (ml_dtypes.float4_e2m1fn, 1, 0)]
)
def test_rounding_in_float32_is_that_of_the_type(dtype: Any, bits: int, least: int) -> None:
    largest = float(ml_dtypes.finfo(dtype).max)
    halves = np.arange(1 << 16, dtype=np.uint32) << 16  # every sign, exponent and, among others, every tie
    x = np.concatenate([halves, halves + 1, halves - 1]).view(np.float32)
    x = x[np.isfinite(x)]
    assert np.array_equal(nearest_float(x, bits, least, largest), np.clip(x, -largest, largest).astype(dtype))
    every = np.arange(256 if bits == 3 else 16, dtype=np.uint8).view(dtype)
    assert np.array_equal(as_floats(every), every.astype(np.float32), equal_nan=True)
