"""What a run is going to take is told before it takes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kinograph
from kinograph.calibration.floats import in_float32
from kinograph.engines.footprint import Footprint, activation_bytes, largest_factor_bytes
from kinograph.engines.ort import OrtDevice
from kinograph.errors import MemoryLimitError
from kinograph.runtime.locate import open_bundle
from kinograph.runtime.pipeline import Pipeline

REQUEST = kinograph.Request(prompt="a red ball moves left", num_frames=5, num_inference_steps=1)


class Small(OrtDevice):
    """A computer with little memory."""

    memory_bytes = 40_000_000  # type: ignore[assignment]


def test_activations_grow_with_the_picture() -> None:
    with open_bundle(None) as bundle:
        variant = bundle.component("decoder_next").variants["fp32"]
        small, large = (activation_bytes(bundle, variant, {"F": 1, "H": side, "W": side}) for side in (8, 32))
    assert 14 * small < large <= 16 * small
    widest = 4 * 4 * 256 * 256 * 4 * 3  # bytes of four frames of 256 × 256, of the few channels that go last
    assert large > widest / 4


def test_what_does_not_fit_is_refused_at_once_with_what_does() -> None:
    with Pipeline(open_bundle(None), Small()) as pipe:
        wide = kinograph.Request(prompt="a red ball", num_frames=5, num_inference_steps=1, width=1024, height=512)
        with pytest.raises(
            MemoryLimitError, match=r"decoder_next would take .* cpu has 40\.0 MB.* Use --size \d+x\d+"
        ) as info:
            list(pipe.run(wide))
        width, height = map(int, str(info.value).rsplit(" ", 1)[1].split("x"))
        assert 0 < height < 512
        assert width % 16 == 0
        list(
            pipe.run(
                kinograph.Request(prompt="a red ball", num_frames=5, num_inference_steps=1, width=width, height=height)
            )
        )


def test_every_stage_says_what_is_expected_of_it() -> None:
    with kinograph.load(device="cpu") as pipe:
        stages = [event for event in pipe.run(REQUEST) if isinstance(event, kinograph.StageStarted)]
    assert [stage.name for stage in stages] == ["text", "denoise", "decode"]
    assert all(30_000_000 < stage.expected_bytes < 200_000_000 for stage in stages)


def test_weights_that_need_not_stay_in_memory_count_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinograph.engines.ort.memory_bytes", lambda: 30_000_000)
    with open_bundle(None) as bundle, OrtDevice() as device:
        weights, activations = device.footprint(bundle, "step", "fp32", {"B": 2, "F": 2, "H": 8, "W": 8})
    assert weights == 0
    assert activations > 0
    assert isinstance(Footprint(0, 1), tuple)


def test_weights_of_16_bits_count_as_the_widest_of_them_where_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"B": 2, "F": 2, "H": 8, "W": 8}
    with open_bundle("starter-few-steps") as bundle, OrtDevice() as device:
        plenty = device.footprint(bundle, "step", "fp16", sizes)
        monkeypatch.setattr("kinograph.engines.ort.memory_bytes", lambda: 30_000_000)
        little = device.footprint(bundle, "step", "fp16", sizes)
        widest = largest_factor_bytes(bundle, bundle.component("step").variants["fp16"])
    assert widest > 100_000
    assert (little.weights, little.activations - plenty.activations) == (0, 3 * 2 * widest)


def test_what_was_told_of_a_graph_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_bundle(None) as bundle:
        variant = bundle.component("decoder_next").variants["fp32"]
        told = [activation_bytes(bundle, variant, {"F": 1, "H": side, "W": 8}) for side in (8, 16)]
        monkeypatch.setattr(bundle, "read", lambda _: pytest.fail("the graph was read again"))
        again = [activation_bytes(bundle, variant, {"F": 1, "H": side, "W": 8}) for side in (8, 16)]
    assert again == told and told[0] < told[1]


def test_16_bits_take_what_float32_takes_on_a_cpu(tmp_path: Path) -> None:
    sizes = {"B": 1, "F": 9, "H": 16, "W": 16}
    with open_bundle("starter-few-steps") as bundle, OrtDevice() as device:
        floats = in_float32(bundle, tmp_path, lambda *_: None)
        stored, wide = (device.footprint(floats, "step", one, sizes) for one in ("fp16", "fp32"))
    # packed for the kernels, and as the float32 that they were made; some are in float32 already, and count double
    assert 2 * wide.weights <= stored.weights < 2.1 * wide.weights
    assert stored.activations == pytest.approx(wide.activations, rel=0.05)


_DECODES = """
from pathlib import Path
from kinograph.engines.ort import OrtDevice
from kinograph.runtime.binding import Binding
from kinograph.runtime.locate import open_bundle
from kinograph.runtime.memory import needs

component, sizes = "decoder_next", {"F": 1, "H": 64, "W": 64}

def most():
    told = Path("/proc/self/status").read_text()  # what getrusage says may be the parent's
    return 1024 * next(int(line.split()[1]) for line in told.splitlines() if line.startswith("VmHWM"))

with open_bundle(None) as bundle, OrtDevice() as device:
    axes = {component: {name: (size, size) for name, size in sizes.items()}}
    need = needs(bundle, device, {component: "fp32"}, axes)[component]
    engine = device.open(bundle, component, "fp32")
    before = most()
    with Binding(device, engine, sizes) as binding:
        for name in engine.inputs:
            binding.write(name, binding[name].read() + 1)
        for _ in range(2):  # where the first run leaves more behind than it needs, the second takes its own besides
            binding.run()
    print(most() - before, need.activations + need.buffers)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what a process took at most")
def test_decoding_takes_no_more_than_was_told() -> None:
    ran = subprocess.run([sys.executable, "-c", _DECODES], capture_output=True, text=True, check=True, timeout=120)
    taken, told = map(int, ran.stdout.split())
    print(f"{taken / 1e6:.0f} MB taken, {told / 1e6:.0f} MB told")
    assert 0.2 * told < taken < told
