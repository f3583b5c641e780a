"""What the windows of a film are given: pictures and films, the end of the window before, how the film began."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from kinograph.errors import RequestError
from kinograph.runtime import conditioning
from kinograph.runtime.anchors import Anchor, Anchors
from kinograph.runtime.conditioning import Given, Piece, Shape
from kinograph.runtime.image import read_image
from kinograph.runtime.inpainting import Patch
from kinograph.runtime.joins import eased
from kinograph.runtime.request import Request, Still
from kinograph.runtime.windows import Window
from kinograph.runtime.workshop import Workshop

__all__ = ["Context", "Layout"]

Latents = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Where a film's frames come from: `context` known ones that go before, `made` new ones, `ending` known ones.

    `window` and `overlap` are in latent frames; `size` is width and height in pixels, `cells` height and width in
    latent cells.
    """

    temporal: int
    context: int
    made: int
    ending: int
    window: int
    overlap: int
    size: tuple[int, int]
    cells: tuple[int, int]

    @property
    def latents(self) -> int:
        """Latent frames in all."""
        return 1 + (self.context + self.made + self.ending - 1) // self.temporal


class Context:
    """What is known of a film: what it was given, once that is taken in, and of what is made no more than a window.

    `before` and `after` are frames uint8 [T, H, W, 3] of films that go before it and come after it; a `patch` is the
    part of another that is made anew.
    """

    def __init__(
        self,
        workshop: Workshop,
        request: Request,
        layout: Layout,
        before: Pixels | None,
        after: Pixels | None,
        anchors: Anchors | None,
        patch: Patch | None,
    ) -> None:
        self._shop, self._request, self._layout = workshop, request, layout
        self._anchors, self._patch = anchors, patch
        self.pieces = self._placed(before, after)
        self.lead: Latents | None = None  # [1, C, F, H, W], what the film that comes after is taken to follow from
        self._tokens: Latents | None = None  # of a picture, for models that read them
        self._known: dict[int, Latents] = {}
        self._filmed: dict[int, Latents] = {}  # those of them that belong to films
        self._made: dict[int, Latents] = {}  # latent frames, by number
        self._shown: dict[int, Pixels] = {}  # the last frame of each of those

    def _placed(self, before: Pixels | None, after: Pixels | None) -> list[Piece]:
        """Every picture and film that is given, placed."""
        request, place = self._request, self._layout
        stills = [Still(request.image)] if request.image is not None else []
        pieces = []
        for still in (*stills, *request.images):
            number = still.frame + (place.made if still.frame < 0 else 0)
            picture = conditioning.fit(
                read_image(still.path), *place.size, resample=Image.Resampling.LANCZOS, how=request.fit
            )
            pieces.append(Piece(picture[None], place.context + number))
        if before is not None:
            pieces.append(Piece(before, 0))
        if after is not None:
            pieces.append(Piece(after, place.context + place.made))
        return pieces

    def take_in(self) -> None:
        """Encode what is given."""
        shop, request, pieces = self._shop, self._request, self.pieces
        manifest = shop.manifest
        if not pieces:
            return
        if "encoder_first" not in manifest.components:
            raise RequestError(f"{manifest.name} cannot start from a picture: it has no encoder. Leave out --image")
        if manifest.conditioning.kind == "channels":
            self._shown[0] = pieces[0].frames[-1]
        else:
            for piece in pieces:
                latents = conditioning.encode_piece(shop.device, shop.engine, manifest.geometry, piece)
                self._known |= latents
                self._filmed |= latents if len(piece.frames) > 1 else {}
                if len(piece.frames) > 1 and piece.start > 0:
                    self.lead = self._standing(piece)
        shop.leave_stage()
        if manifest.conditioning.image_tokens:
            self._tokens = self._read(pieces[0].frames[-1] if request.image is None else read_image(request.image))

    def given(self, window: Window, shape: Shape, *, turns: bool = False) -> tuple[Given, Latents | None]:
        """What a window with latents of `shape` is given, and image tokens [1, N, D] for a model that reads them.

        One that `turns` to another prompt is given the end of the one before at the step's noise level: clean frames
        hold what they show to its shape, and a new subject would be the old one's in another colour.
        """
        shop, manifest = self._shop, self._shop.manifest
        image = None if window.cut else self._shown.get(window.start)
        if manifest.conditioning.kind == "channels":
            if image is None:
                return conditioning.nothing_given(shape), self._tokens
            given = conditioning.given_start(shop.device, shop.engine, image, shape, manifest.geometry.temporal)
            shop.leave_stage()
            anew = window.start > 0 and manifest.conditioning.image_tokens
            return given, self._read(image) if anew else self._tokens
        first = None if self._anchors is None else self._anchors.first(window)
        if first is None and image is not None and window.start > 0:
            first = self.as_first(image)
        given = conditioning.given_in(window, shape, self._made | self._known, first)
        if turns and not any(number in self._known for number in range(window.start, window.start + window.count)):
            given = replace(given, noised=True)
        if self._patch is not None:
            self._patch.give(given, window)
            shop.leave_stage()
        return given, self._tokens

    def as_first(self, image: Pixels) -> Latents:
        """A frame as the latent frame [1, C, 1, H, W] that a window begins with."""
        geometry = self._shop.manifest.geometry
        shape = (1, geometry.channels, 1, *self._layout.cells)
        latents = conditioning.encode_start(
            self._shop.device, self._shop.engine, image, shape, geometry.temporal, clip=False
        )
        self._shop.leave_stage()
        return latents

    def _standing(self, piece: Piece) -> Latents:
        """What a piece's encoding begins with, [1, C, 2, H, W]: its first frame, standing still."""
        geometry = self._shop.manifest.geometry
        still = Piece(np.repeat(piece.frames[:1], 1 + geometry.temporal, axis=0), 0)
        latents = conditioning.encode_piece(self._shop.device, self._shop.engine, geometry, still)
        return np.concatenate([*latents.values()], axis=2)

    def _read(self, picture: Pixels) -> Latents:
        tokens = conditioning.image_tokens(self._shop.device, self._shop.engine, picture)
        self._shop.leave_stage()
        return tokens

    # What is made

    def settled(self, window: Window, given: Given, new: Latents) -> Latents:
        """What a window made, as the film has it: colours as the film began, led up to from what it goes on from.

        Neither is done to what was `given`, nor to a part of a film that is made anew.
        """
        if self._patch is not None:
            return new
        if self._anchors is not None and not given.mask[:, :, window.given : window.kept].any():
            new = self._anchors.held(window, new)
        begin = window.start + window.given
        free = [number for number in range(begin, window.end) if number not in self._known]
        if not free or free != [*range(free[0], free[-1] + 1)]:  # a picture is given amid them
            return new
        known, inner = self._made | self._filmed, new[:, :, free[0] - begin : free[-1] + 1 - begin]
        if free[0] > 1 and free[0] - 1 in known and not window.cut:  # the film's very first stands for one frame
            inner = eased(known[free[0] - 1], inner)
        if free[-1] + 1 in known:
            inner = eased(known[free[-1] + 1], inner[:, :, ::-1])[:, :, ::-1]
        parts = (new[:, :, : free[0] - begin], inner, new[:, :, free[-1] + 1 - begin :])
        return np.concatenate(parts, axis=2)

    def remember(self, number: int, new: Latents) -> None:
        """Keep latent frames [1, C, F, H, W], the film's from `number` on."""
        for index in range(new.shape[2]):
            self._made[number + index] = new[:, :, index : index + 1]

    def show(self, number: int, frame: Pixels) -> None:
        """Keep the last frame that latent frame `number` was decoded to."""
        self._shown[number] = frame

    def leave(self, window: Window, new: Latents) -> None:
        """A window has been made and shown: forget what no other can need."""
        if self._anchors is not None:
            last = self._shown[window.end - 1]
            self._anchors.remember(window, new, lambda: self.as_first(last))
        for kept in (self._made, self._shown):
            for old in [key for key in kept if key < window.end - self._layout.window]:
                del kept[old]

    def begin_at_end(self, window: Window, after: Pixels) -> None:
        """The film will be made from its known end, `after`: that is what keeps its subjects and colours."""
        if self._anchors is not None:
            known = np.concatenate([self._known[number] for number in sorted(self._known)], axis=2)
            self._anchors.begin(window, Anchor.of(self.as_first(after[0]), known))

    def whole(self) -> Latents:
        """The latents [1, C, F, H, W] of a film all of whose windows are remembered and not left."""
        every = self._known | self._made
        return np.concatenate([every[number] for number in range(self._layout.latents)], axis=2)
