"""The manifest of a bundle: what `bundle.json` says, as frozen, typed structs.

The runtime knows no model family: whatever differs between families is a field here or a node in a graph. A graph's
inputs and outputs are declared, never guessed, and two naming rules replace tables of special cases:

- an output called `next_X` is what the input `X` receives in the following call (`next_sample`, `next_history`,
  `next_state_3`);
- a shape's axes are integers or expressions in the axis letters `B` (guidance rows), `L` (text tokens), `F` (latent
  frames), `H` and `W` (latent height and width), optionally multiplied by an integer: `"8*H"`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

import msgspec

__all__ = [
    "FORMAT_VERSION",
    "Agreement",
    "Component",
    "Conditioning",
    "Defaults",
    "Engine",
    "Expert",
    "File",
    "Geometry",
    "Judged",
    "Manifest",
    "Parity",
    "Quality",
    "Solver",
    "Source",
    "Speed",
    "Stretch",
    "Tensor",
    "Text",
    "Variant",
    "resolve_shape",
    "solve_axes",
]

FORMAT_VERSION = 1

Precision = Literal["fp32", "fp16", "bf16"]
FLOATS: tuple[str, ...] = get_args(Precision)
"""The variants that an export may write."""
DType = Literal["float32", "float16", "bfloat16", "uint8", "int64"]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
# \Z, because $ also matches before a trailing newline.
Label = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.+-]{0,127}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.]{0,127}\Z")]
VariantName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}\Z")]
Axis = Annotated[str, msgspec.Meta(pattern=r"^([1-9][0-9]{0,5}\*)?[BLFHW]\Z")]
Letter = Literal["B", "L", "F", "H", "W"]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Base of every manifest type: immutable, and an unknown key is an error."""


class Tensor(_Struct, frozen=True):
    """One input or output of a graph."""

    name: Name
    dtype: DType
    shape: tuple[Annotated[int, msgspec.Meta(ge=1)] | Axis, ...]


class Parity(_Struct, frozen=True):
    """How far a graph is from PyTorch on the same inputs, measured when it was exported.

    `max_abs` and `rms` are differences in the output's own units; `scale` is the RMS of PyTorch's output.
    """

    max_abs: NonNegative
    rms: NonNegative
    scale: NonNegative
    engine: str


class Agreement(_Struct, frozen=True):
    """Of `prompts` that ask for an attribute, for how many the float variant's video was `right`.

    From the same noise a quantised variant `lost` so many of those, and `gained` so many others.
    """

    prompts: Count
    right: Annotated[int, msgspec.Meta(ge=0)]
    lost: Annotated[int, msgspec.Meta(ge=0)]
    gained: Annotated[int, msgspec.Meta(ge=0)]


class Judged(_Struct, frozen=True):
    """What a judge made of a quantised variant's videos beside the float one's, by attribute."""

    judge: Label
    prompts: Count
    attributes: dict[Label, Agreement]


class Quality(_Struct, frozen=True):
    """How far a quantised variant is from the float one it was made from, and whether that passed its recipe's gate.

    `velocity_db` is the prediction's signal-to-noise ratio at the worst step, `psnr_db` and `ssim` are of `videos` made
    from the same noise; `judged` is there where the bundle has a judge.
    """

    recipe: VariantName
    passed: bool
    velocity_db: float
    psnr_db: float
    ssim: float
    videos: Count
    judged: Judged | None = None


class Variant(_Struct, frozen=True):
    """A component in one precision: its graph, the weight files the graph reads, its inputs and outputs.

    `parity` is an exported variant's, `quality` a quantised one's.
    """

    graph: str
    weights: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parity: Parity | None = None
    quality: Quality | None = None


class Component(_Struct, frozen=True):
    """One graph of the bundle, in the precisions it was exported in."""

    variants: Annotated[dict[VariantName, Variant], msgspec.Meta(min_length=1)]


class Geometry(_Struct, frozen=True):
    """How latents relate to frames: a video of 1 + `temporal`·(F − 1) frames of `spatial`·H × `spatial`·W pixels.

    `patch` is how many latents one transformer token spans on a side: H and W are multiples of it. The transformer
    knows `positions` places along each axis: F, H / `patch` and W / `patch` are at most that.
    """

    channels: Count
    spatial: Count
    temporal: Count
    patch: Count
    positions: Count


class Solver(_Struct, frozen=True):
    """The checkpoint's sampler, as its scheduler config describes it.

    `order`, `kind`, `corrector` and `lower_order_final` mean what they do in the UniPC paper (arXiv:2302.04867) and are
    ignored by samplers that lack them. `shift` is the flow shift of SD3 (arXiv:2403.03206, equation 23).
    """

    name: Literal["euler", "unipc", "dpmpp-2m"]
    shift: Positive = 1.0
    train_timesteps: Count = 1000
    order: Annotated[int, msgspec.Meta(ge=1, le=3)] = 2
    kind: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    disable_corrector: tuple[Annotated[int, msgspec.Meta(ge=0, le=1 << 20)], ...] = ()
    lower_order_final: bool = True


class Expert(_Struct, frozen=True):
    """A step component and the timesteps it is for: those at or above `boundary` that no earlier expert took."""

    component: str
    boundary: NonNegative = 0.0
    guidance_scale: NonNegative = 1.0


class Conditioning(_Struct, frozen=True):
    """How the model takes frames that are given.

    `clean`: they enter as they are, at timestep 0 of their own (`known_weights` = 1, 0, 0). `noised`: they enter at the
    noise level of the step (1 − σ, σ, 1), which is approximate. `channels`: they enter through extra channels, where
    frames that are not given are encoded as mid-grey. `image_tokens` says that the first given image also passes
    through the `image_encoder` into the step's `image` input.
    """

    kind: Literal["clean", "noised", "channels"]
    image_required: bool = False
    image_tokens: bool = False


class Text(_Struct, frozen=True):
    """How a prompt becomes token ids: the cleaning steps in their order, then `tokenizer`.

    `length` is L of the step's `text`; shorter prompts are padded with zero embeddings, longer ones are refused.
    """

    tokenizer: str
    length: Count
    dim: Count
    cleaning: tuple[Literal["ftfy", "html", "whitespace"], ...]


class Defaults(_Struct, frozen=True):
    """What a request gets where it says nothing. Sizes in pixels, `fps` in frames per second."""

    width: Count
    height: Count
    num_frames: Count
    fps: Positive
    num_inference_steps: Count
    negative_prompt: str = ""


class Stretch(_Struct, frozen=True):
    """A step that is computed, and where it leads: the next computed one's sample, or the video's latents.

    That is `sample`·x + `latest`·v + `earlier`·v′, of its own sample and prediction and the prediction computed before.
    """

    step: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
    sample: float
    latest: float
    earlier: float = 0.0


class Speed(_Struct, frozen=True):
    """A way to run the model's own schedule of `steps` faster, and how far its videos are from those of every step.

    Steps from `guided`₀ up to, and without, `guided`₁ run with classifier-free guidance; the others have the prompt's
    row alone. `rows` is how many rows of the model are computed in a run, `every_row` how many there would be.
    """

    steps: Count
    guided: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]
    computed: tuple[Stretch, ...]
    rows: Count
    every_row: Count
    psnr_db: float
    ssim: float
    videos: Count


class Engine(_Struct, frozen=True):
    """A TensorRT engine that was built beforehand: `file` of the bundle, of a component in one precision.

    It is for GPUs of one compute `capability`, and of the name `device` where its builder timed them; `axes` are the
    least and greatest sizes it takes. `sources` is the sha256 over those of the graph and its weights: an engine of a
    variant that was replaced since is of no use. `fused_attention` counts the attentions that one kernel does. One that
    `streams` can leave weights in the host's memory; one for `later_versions` runs on those of its builder too, and one
    for `gpus` on more than its own.
    """

    file: str
    component: Name
    precision: VariantName
    sources: Digest
    builder: Label
    kinograph: Label
    capability: Count
    axes: dict[Letter, tuple[Count, Count]]
    activation_bytes: Bytes
    weight_bytes: Bytes
    layers: Annotated[int, msgspec.Meta(ge=0)]
    fused_attention: Annotated[int, msgspec.Meta(ge=0)]
    device: Label | None = None
    streams: bool = False
    later_versions: bool = False
    gpus: Literal["same-capability", "ampere-plus"] | None = None


class Preview(_Struct, frozen=True):
    """A linear map from a latent's C channels to red, green and blue, 0 to 1: [C, 3] `weights`, and a `bias`."""

    weights: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]


class Added(_Struct, frozen=True):
    """A LoRA file that was added to the checkpoint's weights, and how strongly; `expert` counts transformers from 1."""

    name: str
    sha256: Digest
    strength: float
    expert: int = 1


class Source(_Struct, frozen=True):
    """Where the bundle came from."""

    checkpoint: str
    pipeline: str
    exporter: str
    licence: str | None = None
    loras: tuple[Added, ...] = ()


class File(_Struct, frozen=True):
    """Size in bytes and sha256 of a file."""

    size: Bytes
    sha256: Digest


class Manifest(_Struct, frozen=True):
    """All of `bundle.json`. `files` lists every other file of the bundle by its relative POSIX path.

    `judge` names who can tell what this model's videos show; calibration asks for it.
    """

    format_version: int
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    family: Label
    source: Source
    geometry: Geometry
    defaults: Defaults
    solver: Solver
    conditioning: Conditioning
    text: Text
    experts: Annotated[tuple[Expert, ...], msgspec.Meta(min_length=1)]
    components: dict[Name, Component]
    files: dict[str, File]
    speeds: dict[VariantName, Speed] = {}
    engines: tuple[Engine, ...] = ()
    preview: Preview | None = None
    judge: Label | None = None

    def expert_at(self, timestep: float) -> Expert:
        """The expert for a step: the first whose boundary its timestep is not below."""
        return next(expert for expert in self.experts if timestep >= expert.boundary)


_AXIS = re.compile(r"^(?:([0-9]+)\*)?([BLFHW])\Z")


def resolve_shape(shape: tuple[int | str, ...], axes: Mapping[str, int]) -> tuple[int, ...]:
    """The concrete shape of a declared one: `(1, "8*H")` with `{"H": 4}` gives `(1, 32)`.

    Raises KeyError for an axis letter that `axes` lacks, or for text that is not an axis.
    """
    resolved = []
    for axis in shape:
        if isinstance(axis, int):
            resolved.append(axis)
            continue
        match = _AXIS.match(axis)
        if match is None:
            raise KeyError(axis)
        resolved.append(int(match[1] or 1) * axes[match[2]])
    return tuple(resolved)


def solve_axes(declared: Mapping[str, tuple[int | str, ...]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes of the axes at which tensors declared so have these `shapes`, by the tensors' names.

    Raises ValueError where there are no such sizes.
    """
    axes: dict[str, int] = {}
    for name, shape in shapes.items():
        for axis, size in zip(declared[name], shape, strict=True):
            match = _AXIS.match(axis) if isinstance(axis, str) else None
            if match is not None:
                axes.setdefault(match[2], size // int(match[1] or 1))
        if resolve_shape(declared[name], axes) != tuple(shape):
            raise ValueError(f"{name} cannot be of shape {list(shape)}; expected {list(declared[name])} with {axes}")
    return axes
