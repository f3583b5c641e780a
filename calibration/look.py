"""The first verb: run the float graphs, and gather what flows through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kinograph.calibration import Progress
from kinograph.calibration.collect import watched
from kinograph.calibration.journal import Arrays, Journal
from kinograph.calibration.layers import open_graph
from kinograph.calibration.loop import DECODER, FLOAT, Experts, Loop, Start
from kinograph.calibration.work import Work
from kinograph.runtime.codec import latent_chunks, stream

__all__ = ["look", "look_at_decoder"]

Latents = npt.NDArray[np.float32]


def look(
    loop: Loop, starts: Sequence[Start], journal: Journal, progress: Progress
) -> tuple[dict[str, Work], list[Latents]]:
    """Run the float loop over `starts`, gathering what flows through every step component; and where it ended."""
    work: dict[str, Work] = {}
    for name in dict.fromkeys(expert.component for expert in loop.bundle.manifest.experts):
        own = sum(loop.expert(step).component == name for step in loop.steps)
        work[name] = Work.on_products(open_graph(loop.bundle, name, FLOAT), max(1, own * len(starts)))

    def runs(first: int) -> Iterator[Arrays]:
        looking = watched(loop.bundle, [(own.graph, own.watch) for own in work.values()])
        with Experts(loop, looking, FLOAT) as experts:
            for number, start in enumerate(starts[first:], first):
                for step, binding in loop.run(start, experts.open):
                    share = step.timestep / loop.bundle.manifest.solver.train_timesteps
                    work[loop.expert(step).component].watch.see(binding, share)
                    latents = binding["sample"].read()
                    progress("look", number * len(loop.steps) + step.index + 1, len(starts) * len(loop.steps))
                yield {"latents": latents} | _taken(work)

    return work, _gathered(work, journal.sequence("look", len(starts), runs))


def look_at_decoder(loop: Loop, latents: Sequence[Latents], journal: Journal, progress: Progress) -> dict[str, Work]:
    """Decode with the float decoder, gathering what flows through its two graphs."""
    work = {name: Work.on_convolutions(open_graph(loop.bundle, name, FLOAT), len(latents)) for name in DECODER}

    def runs(first: int) -> Iterator[Arrays]:
        looking = watched(loop.bundle, [(own.graph, own.watch) for own in work.values()])
        with loop.decoder(looking, FLOAT) as (opening, following):
            for number, one in enumerate(latents[first:], first + 1):
                for index, binding in enumerate(stream(loop.device, opening, following, latent_chunks(following, one))):
                    work[DECODER[min(index, 1)]].watch.see(binding, 0.0)
                yield {"latents": one} | _taken(work)
                progress("look at decoder", number, len(latents))

    _gathered(work, journal.sequence("decoder", len(latents), runs))
    return work


def _taken(work: dict[str, Work]) -> dict[str, npt.NDArray[Any]]:
    """What every component has seen in a run."""
    return {f"{name}/{key}": array for name, own in work.items() for key, array in own.watch.take().items()}


def _gathered(work: dict[str, Work], runs: Iterator[Arrays]) -> list[Latents]:
    """Give every component what was seen of it in each run; returns where the runs ended."""
    latents = []
    for run in runs:
        for name, own in work.items():
            own.watch.add(run, f"{name}/")
        latents.append(run["latents"])
    return latents
