"""`python -m kinograph.starter.train`: trains the starter model stage by stage and writes its two checkpoints.

The stages are `vae`, `text`, `latents`, `decoder`, `dit`, `trajectories`, `few-steps`, `few-steps-decoder` and `write`,
in this order; without `--stage` all of them run. Each keeps its state in the run folder every two minutes and goes on
from there; a stage whose time is used up ends at once, and one given more minutes than before goes on. The decoders
need no more than `vae`, and `dit` no more than `text` and `latents`: they may run side by side.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import UMT5EncoderModel

from kinograph.starter import model
from kinograph.starter.distillation import Teaching, train_few_steps, write_trajectories
from kinograph.starter.dit_training import Draws, train_dit
from kinograph.starter.latents import encode_world, load_cache
from kinograph.starter.loop import Budget
from kinograph.starter.text_training import train_text, world_tokenizer
from kinograph.starter.vae_training import Clips, train_decoder, train_vae

__all__ = ["STAGES", "Run", "main"]


_CPU = torch.device("cpu")
_FEW_STEPS = "-few-steps"  # after the checkpoint's name


@dataclass(frozen=True)
class Run:
    """What is trained and with how much: layout, minutes a stage, batch sizes as multiples of the CPU's.

    `start` is a checkpoint, of the same layout, to go on from; without it everything begins from random weights.
    """

    folder: Path
    checkpoint: Path
    start: Path | None = None
    layout: model.Layout = model.LAYOUTS["quarter"]
    seed: int = 0
    clips: int = 14_000
    trajectories: int = 1_600
    guidance: float = 3.0
    scale: int = 1
    rate: float = 0.5
    conditioned: float = 0.2
    vae_minutes: float = 34.0
    decoder_minutes: float = 6.0
    text_minutes: float = 5.0
    dit_minutes: float = 60.0
    few_steps_minutes: float = 6.0
    few_steps_decoder_minutes: float = 20.0
    device: torch.device = _CPU

    @property
    def pace(self) -> float:
        """What the rates of the VAE and the transformer are multiplied by: larger batches allow larger ones."""
        return math.sqrt(self.scale) * (1.0 if self.start is None else self.rate)


def _vae(run: Run) -> AutoencoderKLWan:
    if run.start is None:
        vae = model.make_vae(run.layout)
    else:
        vae = AutoencoderKLWan.from_pretrained(run.start, subfolder="vae", torch_dtype=torch.float32)
    budget = Budget(run.vae_minutes, 2e-3 * run.pace, muon_rate=4e-3 * run.pace)
    return train_vae(run.folder, budget, _clips(run), vae, anew=run.start is None)


def _decoder(run: Run) -> AutoencoderKLWan:
    budget = Budget(run.decoder_minutes, 1.5e-3 * run.pace, muon_rate=3e-3 * run.pace)
    return train_decoder(run.folder / "decoder.pt", budget, _clips(run), _vae(run), anew=False)


def _clips(run: Run) -> Clips:
    return Clips(run.layout, run.seed, run.scale, run.device)


def _text(run: Run) -> nn.Module:
    if run.start is None or run.text_minutes > 0:  # anew: going on from the shipped encoder fell short of that
        encoder = model.make_text_encoder(len(world_tokenizer()))
    else:
        encoder = UMT5EncoderModel.from_pretrained(run.start, subfolder="text_encoder", torch_dtype=torch.float32)
    return train_text(run.folder, Budget(run.text_minutes, 2e-3), encoder, seed=run.seed, device=run.device)


def _latents(run: Run) -> None:
    path = run.folder / "latents.pt"
    if not path.exists():
        encode_world(
            _vae(run).eval(),
            path,
            count=run.clips,
            frames=run.layout.frames,
            size=run.layout.size,
            seed=run.seed + 1,
            device=run.device,
            measured=run.start is None or run.vae_minutes > 0,
        )


def _dit(run: Run) -> nn.ModuleDict:
    cache = load_cache(run.folder / "latents.pt")
    budget = Budget(run.dit_minutes, 2e-3 * run.pace, ema=0.9985, muon_rate=5e-3 * run.pace)
    transformer = model.make_transformer(run.layout)
    if run.start is not None:
        begun = WanTransformer3DModel.from_pretrained(run.start, subfolder="transformer", torch_dtype=torch.float32)
        transformer.load_state_dict(begun.state_dict())
    draws = Draws(cache, run.seed, 32 * run.scale, run.conditioned, run.device)
    return train_dit(run.folder, budget, draws, _text(run), transformer)


def _trajectories(run: Run) -> None:
    if run.few_steps_minutes > 0:
        shape = tuple(load_cache(run.folder / "latents.pt").latents.shape[1:])
        teaching = Teaching(run.trajectories, run.guidance, shape, run.seed, 32 * run.scale, run.device)
        write_trajectories(run.folder / "trajectories.pt", _dit(run).eval(), teaching)


def _few_steps(run: Run) -> nn.Module | None:
    if run.few_steps_minutes <= 0:
        return None
    budget = Budget(run.few_steps_minutes, 8e-4, ema=0.98, muon_rate=2e-3)
    path, student = run.folder / "trajectories.pt", _dit(run)["transformer"]
    return train_few_steps(run.folder, budget, path, student, seed=run.seed, batch=32 * run.scale)


def _few_steps_decoder(run: Run) -> AutoencoderKLWan | None:
    """A VAE with the trained one's encoder and a thinner decoder of its own."""
    if run.few_steps_minutes <= 0:
        return None
    vae = model.make_vae(_thinner(run.layout))
    trained = {name: value for name, value in _vae(run).state_dict().items() if not name.startswith("decoder.")}
    vae.load_state_dict(vae.state_dict() | trained)
    budget = Budget(run.few_steps_decoder_minutes, 2e-3, muon_rate=4e-3)
    return train_decoder(run.folder / "few_steps_decoder.pt", budget, _clips(run), vae, anew=True)


def _thinner(layout: model.Layout) -> model.Layout:
    return replace(layout, decoder=layout.few_steps_decoder)


def _write(run: Run) -> None:
    trained, cache = _dit(run), load_cache(run.folder / "latents.pt")
    text_encoder, tokenizer = trained["text_encoder"].cpu(), world_tokenizer()
    vae = model.make_vae(run.layout, cache.mean, cache.std)
    vae.load_state_dict(_decoder(run).state_dict())
    model.write(run.checkpoint, vae, trained["transformer"].cpu(), text_encoder, tokenizer)
    student, thin = _few_steps(run), _few_steps_decoder(run)
    if student is not None and thin is not None:
        vae = model.make_vae(_thinner(run.layout), cache.mean, cache.std)
        vae.load_state_dict(thin.state_dict())
        sibling = run.checkpoint.with_name(run.checkpoint.name + _FEW_STEPS)
        model.write(sibling, vae, student.cpu(), text_encoder, tokenizer, few_steps=True)


STAGES: dict[str, Callable[[Run], object]] = {
    "vae": _vae,
    "text": _text,
    "latents": _latents,
    "decoder": _decoder,
    "dit": _dit,
    "trajectories": _trajectories,
    "few-steps": _few_steps,
    "few-steps-decoder": _few_steps_decoder,
    "write": _write,
}


@click.command()
@click.option("--stage", "stages", type=click.Choice(list(STAGES)), multiple=True, help="Run only these stages.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default="starter-run", show_default=True, help="State of the training."
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    default="starter-checkpoint",
    show_default=True,
    help=f"Result; the few-step variant goes beside it, with {_FEW_STEPS} after its name.",
)
@click.option(
    "--start",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Go on from this checkpoint; give a stage 0 minutes to leave its part as it is.",
)
@click.option(
    "--layout",
    type=click.Choice(list(model.LAYOUTS)),
    default="full",
    show_default=True,
    help="How large clips are: 128×128×33, or 64×64×17 for a CPU.",
)
@click.option("--clips", default=Run.clips, show_default=True, help="Clips in the cache of latents.")
@click.option("--trajectories", default=Run.trajectories, show_default=True, help="Clips the few-step teacher makes.")
@click.option("--guidance", default=Run.guidance, show_default=True, help="Guidance scale of the few-step teacher.")
@click.option("--scale", default=Run.scale, show_default=True, help="Multiplies the batch sizes; 4 or more on a GPU.")
@click.option("--rate", default=Run.rate, show_default=True, help="Share of the learning rates where --start goes on.")
@click.option(
    "--conditioned", default=Run.conditioned, show_default=True, help="Share of batches whose clips are given frames."
)
@click.option("--vae-minutes", default=Run.vae_minutes, show_default=True)
@click.option("--decoder-minutes", default=Run.decoder_minutes, show_default=True)
@click.option("--text-minutes", default=Run.text_minutes, show_default=True)
@click.option("--dit-minutes", default=Run.dit_minutes, show_default=True)
@click.option(
    "--few-steps-minutes", default=Run.few_steps_minutes, show_default=True, help="With 0 there is no few-step variant."
)
@click.option("--few-steps-decoder-minutes", default=Run.few_steps_decoder_minutes, show_default=True)
@click.option("--seed", default=Run.seed, show_default=True)
@click.option("--threads", default=None, type=int, help="CPU threads; PyTorch's choice if not given.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
def main(stages: tuple[str, ...], layout: str, threads: int | None, device: str, **options: int | float | Path) -> None:
    """Train the starter model, resuming whatever the run folder holds."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if threads is not None:
        torch.set_num_threads(threads)
    if device != "cpu":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    run = Run(layout=model.LAYOUTS[layout], device=torch.device(device), **options)  # type: ignore[arg-type]
    for name in stages or tuple(STAGES):
        STAGES[name](run)


if __name__ == "__main__":
    main()
