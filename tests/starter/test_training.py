"""Every stage of the training, for seconds: it runs and resumes, and diffusers samples from what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]

FRAMES, SIZE = 9, 32
MINUTES = 0.03  # a stage


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run/`, the training's state, and `checkpoint/`, written after a few steps of every stage."""
    from kinograph.starter.train import STAGES, Run

    folder = tmp_path_factory.mktemp("starter")
    run = Run(
        folder=folder / "run",
        checkpoint=folder / "checkpoint",
        frames=FRAMES,
        size=SIZE,
        clips=32,
        vae_minutes=MINUTES,
        decoder_minutes=MINUTES,
        text_minutes=MINUTES,
        dit_minutes=MINUTES,
    )
    for stage in STAGES.values():
        stage(run)
    return folder


def test_every_stage_leaves_a_state_to_resume_from(trained: Path) -> None:
    for name in ("vae", "decoder", "text", "dit"):
        state = torch.load(trained / "run" / f"{name}.pt", weights_only=True)
        assert state["step"] > 0 and state["seconds"] >= MINUTES * 60


def test_diffusers_samples_from_the_checkpoint(trained: Path) -> None:
    from kinograph.starter.reference import Sampling, generator

    generate = generator(trained / "checkpoint", Sampling(size=SIZE, frames=FRAMES, steps=2, guidance=2.0))
    frames = generate("a large red ball moves left on a navy background", 1)
    assert frames.shape == (FRAMES, SIZE, SIZE, 3) and frames.dtype == np.uint8


def test_weights_are_half_precision_and_the_model_stays_small(trained: Path) -> None:
    from safetensors import safe_open

    total = 0
    for file in (trained / "checkpoint").rglob("*.safetensors"):
        with safe_open(str(file), "np") as weights:
            for key in weights.keys():  # noqa: SIM118
                part = weights.get_slice(key)
                total += int(np.prod(part.get_shape()))
                assert part.get_dtype() in ("F16", "F32")
    assert total <= 4_600_000  # so that a float32 bundle stays within 20 MB


def test_given_frames_always_leave_one_to_make() -> None:
    from kinograph.starter.dit_training import given_frames

    rng = np.random.default_rng(0)
    drawn = [given_frames(5, rng) for _ in range(300)]
    assert not any(given.all() for given in drawn)
    assert any(given[0] and given[-1] for given in drawn) and any(not given.any() for given in drawn)


def test_tokenizer_keeps_the_worlds_words_whole() -> None:
    from kinograph.starter.model import TEXT_LENGTH
    from kinograph.starter.text_training import world_tokenizer

    tokenizer = world_tokenizer()
    caption = "a large red ball moves left on a navy background"
    assert tokenizer.tokenize(caption) == [f"▁{word}" for word in caption.split()]
    assert tokenizer("").input_ids == [tokenizer.eos_token_id]
    padded = tokenizer("a giraffe", padding="max_length").input_ids
    assert len(padded) == TEXT_LENGTH and tokenizer.unk_token_id not in padded
