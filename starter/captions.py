"""Puts scenes into words: one plain caption for each, and many paraphrases of it.

The plain caption has one word for each thing. A paraphrase changes articles, synonyms, the order of the parts, and of
two subjects which one is told first ("a red ball rises on the left of a blue star that spins" is also "a blue star
spins on the right of a red ball that rises").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kinograph.starter.world import Actor, Scene, faces

__all__ = ["caption", "main_caption"]

_PLAIN_SHARE = 0.4  # of the captions in training

_MOVES: dict[str, tuple[str, ...]] = {  # third person first, the plain one; then gerunds after "|"
    "left": ("moves left|moving left", "slides left|sliding left", "goes to the left|going to the left"),
    "right": ("moves right|moving right", "slides right|sliding right", "goes to the right|going to the right"),
    "up": ("moves up|moving up", "rises|rising", "goes up|going up"),
    "down": ("moves down|moving down", "sinks|sinking", "goes down|going down"),
    "up left": ("moves diagonally up to the left|moving diagonally up to the left", "climbs left|climbing left"),
    "up right": ("moves diagonally up to the right|moving diagonally up to the right", "climbs right|climbing right"),
    "down left": ("moves diagonally down to the left|moving diagonally down to the left", "dives left|diving left"),
    "down right": (
        "moves diagonally down to the right|moving diagonally down to the right",
        "dives right|diving right",
    ),
    "bounces": ("bounces|bouncing", "bounces up and down|bouncing up and down", "jumps|jumping"),
    "circles": ("circles|circling", "moves in a circle|moving in a circle", "goes round in a circle|circling round"),
    "spins": ("spins|spinning", "turns around|turning around", "rotates|rotating"),
    "grows": ("grows|growing", "gets bigger|getting bigger", "becomes larger|becoming larger"),
    "shrinks": ("shrinks|shrinking", "gets smaller|getting smaller", "becomes smaller|becoming smaller"),
    "enters left": ("enters from the left|entering from the left", "comes in from the left|coming in from the left"),
    "enters right": (
        "enters from the right|entering from the right",
        "comes in from the right|coming in from the right",
    ),
    "leaves left": ("leaves to the left|leaving to the left", "exits left|exiting left"),
    "leaves right": ("leaves to the right|leaving to the right", "exits right|exiting right"),
    "stops left": (
        "moves left and stops midway|moving left and stopping midway",
        "slides left and halts|sliding left and halting",
    ),
    "stops right": (
        "moves right and stops midway|moving right and stopping midway",
        "slides right and halts|sliding right and halting",
    ),
    "falls": ("falls|falling", "falls to the ground|falling to the ground", "drops|dropping"),
    "settles": (
        "falls and bounces lower each time|falling and bouncing lower each time",
        "falls and settles|falling and settling",
    ),
    "stays": ("stays still|staying still", "does not move|standing still", "rests|resting"),
}
_SIZES = {"large": ("large", "big", "huge"), "small": ("small", "little", "tiny")}
_FACINGS = {1: "facing right", -1: "facing left"}
_BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "black": ("on a plain black background", "on plain black", "over a plain black backdrop"),
    "white": ("on a plain white background", "on plain white", "over a plain white backdrop"),
    "navy": ("on a plain navy background", "on plain navy", "over a plain navy backdrop"),
    "gradient": ("on a gradient background", "on a gradient", "over a colour gradient"),
    "stripes": ("on a striped background", "on stripes", "over a striped backdrop"),
    "stars": ("on a background of stars", "among stars", "over a backdrop of stars"),
    "hills": ("in front of hills", "over hills", "in the hills"),
    "night sky": ("in the night sky", "at night under the moon", "against a night sky"),
    "sea": ("over the sea", "by the sea", "at sea"),
}
_GENRES: dict[str, tuple[str, ...]] = {
    "flat": ("flat style", "flat colours", "flat design"),
    "outline": ("outline style", "drawn in outline", "line drawing"),
    "pixel art": ("pixel art", "pixel art style", "pixelated"),
    "watercolour": ("watercolour", "watercolour style", "painted in watercolour"),
    "neon": ("neon style", "neon lights", "glowing neon"),
    "chalkboard": ("chalkboard style", "chalk drawing", "drawn in chalk"),
}


class _Words:
    """Picks words: always the first without a generator, at random with one."""

    def __init__(self, rng: np.random.Generator | None) -> None:
        self._rng = rng

    def one(self, choices: Sequence[str]) -> str:
        return choices[0] if self._rng is None else choices[int(self._rng.integers(len(choices)))]

    def whether(self, share: float) -> bool:
        return self._rng is not None and self._rng.random() < share

    def subject(self, actor: Actor, facing: bool = False) -> str:
        words = [actor.colour, actor.subject]
        if actor.size:
            words.insert(0, self.one(_SIZES[actor.size]))
        article = "the" if self.whether(0.25) else "an" if words[0][0] in "aeiou" else "a"
        after = [_FACINGS[actor.facing]] if facing else []
        return " ".join([article, *words, *after])

    def move(self, actor: Actor) -> str:
        return self.one(_MOVES[actor.motion]).split("|")[0]

    def moving(self, actor: Actor) -> str:
        return self.one(_MOVES[actor.motion]).split("|")[1]

    def clause(self, actor: Actor, facing: bool = False) -> str:
        return f"{self.subject(actor, facing)} {self.moving(actor) if self.whether(0.3) else self.move(actor)}"

    def relative(self, actor: Actor) -> str:
        """The actor with its motion, as something that another is placed by."""
        if self.whether(0.4):
            return f"{self.subject(actor)} {self.moving(actor)}"
        return f"{self.subject(actor)} that {self.move(actor)}"


def _single(scene: Scene, words: _Words) -> str:
    return words.clause(scene.actors[0], faces(scene))


def _pair(scene: Scene, words: _Words) -> str:
    first, second = scene.actors
    beside = scene.kind == "beside"
    here, there = (
        (("left of", "to the left of"), ("right of", "to the right of")) if beside else (("above",), ("below",))
    )
    if words.whether(0.3):
        sides = ("on the left", "on the right") if beside else ("at the top", "at the bottom")
        told = [(first, sides[0]), (second, sides[1])]
        if words.whether(0.5):
            told.reverse()
        (one, one_side), (other, other_side) = told
        return f"{words.clause(one)} {one_side} {words.one(('while', 'and'))} {words.clause(other)} {other_side}"
    if words.whether(0.4):
        return f"{words.clause(second)} {words.one(there)} {words.relative(first)}"
    return f"{words.clause(first)} {words.one(here)} {words.relative(second)}"


def _row(scene: Scene, words: _Words) -> str:
    left, middle, right = scene.actors
    if words.whether(0.4):
        return f"{words.clause(middle)} between {words.relative(left)} and {words.relative(right)}"
    listed = f"{words.clause(left)}, {words.clause(middle)} and {words.clause(right)}"
    return f"{listed}, from left to right"


def _wall(scene: Scene, words: _Words) -> str:
    actor = scene.actors[0]
    return f"{words.clause(actor)} {words.one(('behind a wall', 'passing behind a wall', 'behind a brick wall'))}"


def _collision(scene: Scene, words: _Words) -> str:
    first, second = scene.actors
    way = first.motion.split()[1]
    roll = words.one((f"rolls {way}", f"moves {way}"))
    return f"{words.subject(first)} {roll} and hits {words.subject(second)}{words.one((' that rolls on', ''))}"


_TELL = {"single": _single, "beside": _pair, "above": _pair, "row": _row, "wall": _wall, "collision": _collision}


def _tell(scene: Scene, words: _Words) -> str:
    action = _TELL[scene.kind](scene, words)
    background, genre = words.one(_BACKGROUNDS[scene.background]), words.one(_GENRES[scene.genre])
    if words.whether(0.2):
        return f"{background}, {action}, {genre}"
    if words.whether(0.25):
        return f"{genre}, {action} {background}"
    return f"{action} {background}, {genre}"


def main_caption(scene: Scene) -> str:
    """The scene in the plainest words: "a large red ball moves left on a plain navy background, flat style"."""
    return _tell(scene, _Words(None))


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """The scene in words: often the plain caption, otherwise a random paraphrase of it."""
    return main_caption(scene) if rng.random() < _PLAIN_SHARE else _tell(scene, _Words(rng))
