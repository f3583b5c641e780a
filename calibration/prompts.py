"""Which prompts a bundle is calibrated with."""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from kinograph.bundle import Bundle
from kinograph.calibration import CalibrationOptions
from kinograph.errors import RequestError, UsageError
from kinograph.runtime.text import Tokenizer

__all__ = ["chosen_prompts"]

_FEWEST = 2
_TAKEN_APART = 1.6  # times as many tokens a word as the prompt with the fewest


def chosen_prompts(bundle: Bundle, options: CalibrationOptions) -> tuple[list[str], list[str]]:
    """The user's prompts, all of which must fit the model, or those of the project whose words the model knows.

    A word it does not know its tokenizer takes apart: prompts that become far more tokens than others are left out.
    Returns those to look into, `options.runs` at most and no more than two thirds, and others to compare with.
    """
    tokenizer = Tokenizer(bundle.read(bundle.manifest.text.tokenizer), bundle.manifest.text)
    given = options.prompts
    prompts = given or tuple((files("kinograph.calibration") / "prompts.txt").read_text("utf-8").splitlines())
    fitting: dict[str, float] = {}
    for number, prompt in enumerate(prompts, 1):
        try:
            tokens = len(tokenizer.encode(prompt))
        except RequestError as error:
            if given is not None:
                raise RequestError(f"prompt {number} cannot be used: {error}") from error
            continue
        fitting[prompt] = tokens / max(1, len(prompt.split()))
    limit = np.inf if given is not None else _TAKEN_APART * min(fitting.values(), default=0.0)
    known = [prompt for prompt, ratio in fitting.items() if ratio <= limit]
    if len(known) < _FEWEST:
        raise UsageError(
            f"{len(known)} of {len(prompts)} prompts can be used with {bundle.manifest.name}; expected at least "
            f"{_FEWEST} different ones, to find ranges on and to compare with. Give more with --prompts FILE."
        )
    order = [known[i] for i in np.random.default_rng(0).permutation(len(known))]
    runs = min(options.runs, 2 * len(order) // 3)
    return order[:runs], order[runs : runs + options.videos]
