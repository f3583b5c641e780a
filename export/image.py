"""CLIP's image encoder, through optimum's `OnnxConfig`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.onnx.model_configs import CLIPVisionModelOnnxConfig
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from kinograph.errors import BundleError
from kinograph.export.precision import set_precision
from kinograph.export.trace import Traced, meta_module, trace
from kinograph.export.weights import Checkpoint
from kinograph.manifest import Tensor as Declared

__all__ = ["ImageEncoder", "trace_clip"]

_BICUBIC = 3  # PIL's number


class ImageEncoder(nn.Module):
    """pixels uint8 [S, S, 3] → tokens [1, N, D] float32: what CLIP knows before its last layer.

    Scaling and CLIP's mean and standard deviation are inside; resizing and cropping are the caller's.
    """

    def __init__(self, encoder: nn.Module, mean: list[float], std: list[float], dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder = encoder
        self.dtype = dtype
        self.register_buffer("pixel_mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        channels = pixels.float().permute(2, 0, 1)  # TensorRT has uint8 at the edges alone
        scaled = (channels / 255 - self.pixel_mean) / self.pixel_std
        hidden: Tensor = self.encoder(pixel_values=scaled.unsqueeze(0).to(self.dtype))["last_hidden_state"]
        return hidden.float()


def trace_clip(folder: Path, processor: Path, dtype: torch.dtype) -> Traced:
    """The image encoder in `folder`, whose last layer is dropped: Wan reads the layer before it.

    Raises BundleError where `processor` prepares pictures in another way than `runtime.conditioning.fit` does.
    """
    config = CLIPVisionConfig.from_pretrained(folder)
    size, mean, std = _preprocessing(processor / "preprocessor_config.json", config.image_size)
    config.num_hidden_layers -= 1
    with meta_module():
        encoder = CLIPVisionModel(config)
    set_precision(encoder, dtype, keep=None)
    embeddings = encoder.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions).unsqueeze(0)  # a buffer no checkpoint stores
    with CLIPVisionModelOnnxConfig(config, task="feature-extraction").patch_model_for_export(encoder):
        return trace(
            ImageEncoder(encoder, mean, std, dtype),
            [Declared(name="pixels", dtype="uint8", shape=(size, size, 3))],
            ["tokens"],
            axes={},
            sources={"encoder.": Checkpoint(folder)},
        )


def _preprocessing(path: Path, image_size: int) -> tuple[int, list[float], list[float]]:
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise BundleError(f"{path} cannot be read ({exc}). Copy the checkpoint again.") from exc
    crop = config.get("crop_size")
    expected = {
        "size.shortest_edge": (config.get("size", {}).get("shortest_edge"), image_size),
        "crop_size.height": (crop.get("height") if isinstance(crop, dict) else crop, image_size),
        "resample": (config.get("resample", _BICUBIC), _BICUBIC),
        "do_resize": (config.get("do_resize", True), True),
        "do_center_crop": (config.get("do_center_crop", True), True),
        "do_rescale": (config.get("do_rescale", True), True),
        "do_normalize": (config.get("do_normalize", True), True),
    }
    wrong = [f"{key} is {got!r}, expected {want!r}" for key, (got, want) in expected.items() if got != want]
    if wrong:
        raise BundleError(f"{path} prepares pictures in a way that is not supported: {'; '.join(wrong)}.")
    return image_size, list(config["image_mean"]), list(config["image_std"])
