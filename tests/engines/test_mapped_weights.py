"""Weights that would fill the memory are read where they are mapped, and give what a copy of them gives."""

from __future__ import annotations

import numpy as np
import pytest

from kinograph.bundle import Bundle
from kinograph.engines import ort
from kinograph.runtime.binding import Binding
from kinograph.runtime.locate import find_bundle


def test_large_weights_are_not_copied_and_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    with Bundle.open(find_bundle(None)) as bundle, ort.OrtDevice(threads=1) as device:
        for share in (ort._COPIED_SHARE, 0.0):
            monkeypatch.setattr(ort, "_COPIED_SHARE", share)
            engine = device.open(bundle, "text_encoder", "fp32")
            with Binding(device, engine, {"L": 5}) as binding:
                binding.write("input_ids", np.arange(5, dtype=np.int64)[None])
                binding.write("attention_mask", np.ones((1, 5), np.int64))
                for _ in range(2):
                    binding.run()
                made.append(binding["embeddings"].read())
            taken = {value.name for value in engine._session.get_inputs()} - engine.inputs.keys()
            assert bool(taken) == (share == 0.0)
    assert np.abs(made[0] - made[1]).max() <= 1e-5 * np.abs(made[0]).max()
