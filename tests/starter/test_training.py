"""Every stage of the training, for seconds: it runs and resumes, and diffusers samples from what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from kinograph.starter import captions, world  # noqa: E402
from kinograph.starter.model import LAYOUTS, TEXT_LENGTH, Layout, make_vae  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]

TINY = Layout(frames=9, size=32, fps=8, layers=2, heads=2, ffn=64, encoder=16, decoder=16, few_steps_decoder=8)
MINUTES = 0.03  # a stage


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run/`, the training's state, and two checkpoints, written after a few steps of every stage."""
    from kinograph.starter.train import STAGES, Run

    folder = tmp_path_factory.mktemp("starter")
    run = Run(
        folder=folder / "run",
        checkpoint=folder / "checkpoint",
        layout=TINY,
        clips=32,
        trajectories=32,
        vae_minutes=MINUTES,
        decoder_minutes=MINUTES,
        text_minutes=MINUTES,
        dit_minutes=MINUTES,
        few_steps_minutes=MINUTES,
        few_steps_decoder_minutes=MINUTES,
    )
    for stage in STAGES.values():
        stage(run)
    return folder


def test_every_stage_leaves_a_state_to_resume_from(trained: Path) -> None:
    for name in ("vae", "decoder", "text", "dit", "few_steps", "few_steps_decoder"):
        state = torch.load(trained / "run" / f"{name}.pt", weights_only=True)
        assert state["step"] > 0 and state["seconds"] >= MINUTES * 60


def test_trajectories_go_on_from_what_there_is(trained: Path, tmp_path: Path) -> None:
    from kinograph.starter.distillation import Teaching, write_trajectories
    from kinograph.starter.model import make_text_encoder, make_transformer
    from kinograph.starter.text_training import world_tokenizer

    shutil.copy(trained / "run" / "trajectories.pt", tmp_path)
    before = torch.load(trained / "run" / "trajectories.pt", weights_only=True)["points"]
    teacher = {"transformer": make_transformer(TINY), "text_encoder": make_text_encoder(len(world_tokenizer()))}
    teaching = Teaching(len(before) + 2, 3.0, tuple(before.shape[2:]), 0, 2, torch.device("cpu"))
    write_trajectories(tmp_path / "trajectories.pt", torch.nn.ModuleDict(teacher), teaching)
    points = torch.load(tmp_path / "trajectories.pt", weights_only=True)["points"]
    assert points.dtype == torch.float16 and len(points) == len(before) + 2
    assert torch.equal(points[: len(before)], before)
    assert not any(torch.equal(points[-1], point) for point in points[:-1])


def test_the_few_step_variant_has_a_thinner_decoder(trained: Path) -> None:
    told = json.loads((trained / "checkpoint-few-steps" / "vae" / "config.json").read_text())
    assert told["decoder_base_dim"] == TINY.few_steps_decoder


@pytest.mark.parametrize(("name", "steps", "guidance"), [("checkpoint", 2, 2.0), ("checkpoint-few-steps", 4, 1.0)])
def test_diffusers_samples_from_the_checkpoints(trained: Path, name: str, steps: int, guidance: float) -> None:
    from kinograph.starter.reference import Sampling, generator

    sampling = Sampling(size=TINY.size, frames=TINY.frames, steps=steps, guidance=guidance)
    frames = generator(trained / name, sampling)("a red ball moves left", 1, None)
    assert frames.shape == (TINY.frames, TINY.size, TINY.size, 3) and frames.dtype == np.uint8


def test_weights_are_half_precision(trained: Path) -> None:
    from safetensors import safe_open

    for file in trained.rglob("*.safetensors"):
        with safe_open(str(file), "np") as weights:
            assert {weights.get_slice(key).get_dtype() for key in weights.keys()} <= {"F16", "F32"}  # noqa: SIM118


def test_the_shipped_layout_fits_its_bundle() -> None:
    from kinograph.starter.model import make_text_encoder, make_transformer

    parts = (make_vae(LAYOUTS["full"]), make_transformer(LAYOUTS["full"]), make_text_encoder(300))
    assert sum(p.numel() for part in parts for p in part.parameters()) * 4 <= 38_000_000  # bytes, in float32


def test_training_goes_on_from_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    from kinograph.starter.train import STAGES, Run

    run = Run(
        folder=tmp_path / "run",
        checkpoint=tmp_path / "checkpoint",
        start=trained / "checkpoint",
        layout=TINY,
        clips=32,
        vae_minutes=0,
        text_minutes=0,
        decoder_minutes=0,
        dit_minutes=MINUTES,
        few_steps_minutes=0,
    )
    for name in ("latents", "dit", "trajectories", "few-steps", "few-steps-decoder", "write"):
        STAGES[name](run)
    before, after = (
        torch.load(folder / "run" / "latents.pt", weights_only=True)["mean"] for folder in (trained, tmp_path)
    )
    assert np.allclose(before, after, atol=0.02)  # the same VAE, in half precision meanwhile
    assert torch.load(tmp_path / "run" / "dit.pt", weights_only=True)["step"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "run"]  # no few-step variant
    assert str(trained) not in (tmp_path / "checkpoint" / "transformer" / "config.json").read_text()


def test_what_is_hard_to_learn_is_trained_on_more_often_than_it_is_drawn() -> None:
    from kinograph.starter.clips import training_scenes

    rng = np.random.default_rng(3)
    drawn, trained = [world.sample(rng) for _ in range(400)], training_scenes(400, rng)

    def shares(scenes: list[world.Scene]) -> tuple[float, float]:
        spinning = [actor.motion == "spins" for scene in scenes for actor in scene.actors]
        return float(np.mean([scene.genre == "pixel art" for scene in scenes])), float(np.mean(spinning))

    assert all(often > 1.4 * seldom for often, seldom in zip(shares(trained), shares(drawn), strict=True))


def test_given_frames_always_leave_one_to_make() -> None:
    from kinograph.starter.dit_training import given_frames

    rng = np.random.default_rng(0)
    drawn = [given_frames(5, rng) for _ in range(300)]
    assert all(given.any() and not given.all() for given in drawn)
    assert any(given[0] and given[-1] for given in drawn) and any(not given[0] for given in drawn)
    late = [given_frames(5, rng, late=True) for _ in range(300)]
    assert all(given.any() and not given.all() for given in late)
    assert any(not given[0] for given in late) and any(given[1] and not given[2:].any() for given in late)


def test_convolutions_of_single_cells_are_trained_as_products() -> None:
    from kinograph.starter.vae_training import _module, decode_unclamped

    vae = make_vae(TINY)
    latents = torch.randn(2, vae.config.z_dim, 2, 4, 4)
    with torch.no_grad():
        expected = decode_unclamped(vae, latents)
        trained = decode_unclamped(_module(vae)["vae"], latents)
    assert sum("forward" in vars(part) for part in vae.modules()) > 2
    torch.testing.assert_close(trained, expected, rtol=0, atol=1e-5)


def test_small_subjects_weigh_what_large_ones_do() -> None:
    from kinograph.starter.weighting import size_weight

    covered = torch.zeros(4, 1, 5, 10, 10)
    for clip, pixels in enumerate((10, 5, 80, 0)):
        covered[clip].view(5, 100)[:, :pixels] = 1
    assert size_weight(covered).flatten().tolist() == pytest.approx([1, 2, 0.5, 6])


def test_larger_pieces_encode_and_decode_the_same() -> None:
    from kinograph.starter.vae_training import decode_unclamped, encode_moments

    vae = make_vae(TINY).eval()
    for module in vae.modules():
        if type(module).__name__ == "WanResidualBlock":
            torch.nn.init.normal_(module.conv2.weight, std=0.05)
    clips = torch.rand(1, 3, 13, 32, 32) * 0.5 - 0.25
    with torch.no_grad():
        moments = encode_moments(vae, clips)
        assert torch.allclose(moments, vae._encode(clips), atol=1e-5)
        latents = moments.chunk(2, dim=1)[0]
        decoded = decode_unclamped(vae, latents).clamp(-1, 1)
        assert torch.allclose(decoded, vae.decode(latents).sample, atol=1e-5)


def test_gradients_that_are_never_finite_end_the_training(tmp_path: Path) -> None:
    from kinograph.starter.loop import Budget, Loop

    layer = torch.nn.Linear(2, 1)
    loop = Loop(layer, Budget(1, 1e-2), tmp_path / "layer.pt")
    before = layer.weight.detach().clone()
    for _ in range(9):  # now and then such a step is left out
        loop.update(layer(torch.full((1, 2), torch.nan)).mean())
    assert torch.equal(layer.weight, before)
    loop.update(layer(torch.ones(1, 2)).mean())
    assert not torch.equal(layer.weight, before)
    with pytest.raises(ArithmeticError, match="layer: the gradient of 10 steps in a row was not finite"):
        for _ in range(10):
            loop.update(layer(torch.full((1, 2), torch.nan)).mean())


def test_convolutions_are_trained_in_place_by_muon() -> None:
    from kinograph.starter.loop import Budget, Loop

    for layout in (torch.contiguous_format, torch.channels_last):
        convolution = torch.nn.Conv2d(3, 4, 3).to(memory_format=layout)
        before = convolution.weight.detach().clone()
        loop = Loop(convolution, Budget(1, 1e-2), Path("unused"), lambda name, parameter: parameter.ndim == 4)
        loop.update(convolution(torch.ones(1, 3, 5, 5)).square().mean())
        assert not torch.equal(convolution.weight, before)


def test_muon_agrees_with_pytorchs() -> None:
    from kinograph.starter.muon import Muon

    torch.manual_seed(0)
    for shape in ((24, 64), (64, 24)):
        start = torch.randn(shape)
        ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
        one = Muon([ours], lr=0.01, weight_decay=0.1)
        other = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            ours.grad = torch.randn(shape)
            theirs.grad = ours.grad.clone()
            one.step()
            other.step()
        moved, apart = (ours - start).abs().max(), (ours - theirs).abs().max()
        print(f"largest difference {apart:.1e} of {moved:.1e}")
        assert apart < 0.05 * moved  # theirs works in bfloat16


def test_every_token_names_its_own_subject() -> None:
    from kinograph.starter.text_training import labels

    rng = np.random.default_rng(0)
    scenes = [world.sample(rng, kind=kind) for kind in world.KINDS]
    texts = [captions.caption(scene, rng) for scene in scenes]
    named = labels(scenes, texts, TEXT_LENGTH)
    assert all(tuple(rows.shape) == (len(scenes), TEXT_LENGTH) for rows in named.values())
    for scene, text, places in zip(scenes, texts, named["place"].tolist(), strict=True):
        words = text.replace(",", " ,").split()
        for number, actor in enumerate(scene.actors):
            at = next(i for i in range(len(words)) if words[i : i + 2] == [actor.colour, actor.subject])
            assert places[at] == number


def test_the_students_levels_are_those_it_will_be_run_with() -> None:
    from kinograph.runtime.solvers import schedule, solver_from_scheduler_config
    from kinograph.starter.distillation import STEPS, levels
    from kinograph.starter.model import few_steps_scheduler

    config = dict(few_steps_scheduler().config) | {"_class_name": "DPMSolverMultistepScheduler"}
    steps = schedule(solver_from_scheduler_config(config), STEPS)
    sigmas, timesteps = levels()
    assert [step.timestep for step in steps] == timesteps.tolist()
    assert np.allclose([*(step.sigma for step in steps), 0], sigmas, atol=1e-6)
    for step in steps:  # Euler's: x′ = x + (σ′ − σ)·v
        row = step.coefficients[0]
        assert np.isclose(row[0], 1, atol=1e-6) and np.isclose(row[-2], step.sigma_next - step.sigma, atol=1e-6)


def test_tokenizer_keeps_the_worlds_words_whole() -> None:
    from kinograph.starter.text_training import world_tokenizer

    tokenizer = world_tokenizer()
    caption = "a large red ball moves left on a plain navy background"
    assert tokenizer.tokenize(caption) == [f"▁{word}" for word in caption.split()]
    assert tokenizer("").input_ids == [tokenizer.eos_token_id]
    padded = tokenizer("a giraffe", padding="max_length").input_ids
    assert len(padded) == TEXT_LENGTH and tokenizer.unk_token_id not in padded
