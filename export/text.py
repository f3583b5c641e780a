"""Text encoders, through optimum's `OnnxConfig`: it names their inputs and patches them for tracing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.onnx.model_configs import T5EncoderOnnxConfig
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from kinograph.errors import BundleError
from kinograph.export.precision import set_precision
from kinograph.export.trace import Traced, meta_module, trace
from kinograph.export.weights import Checkpoint
from kinograph.manifest import Tensor as Declared

__all__ = ["TextEncoder", "UMT5EncoderOnnxConfig", "text_length", "tokenizer_json", "trace_umt5"]

_LONGEST = 512  # tokens; what Wan was trained with, and what diffusers pads to


class UMT5EncoderOnnxConfig(T5EncoderOnnxConfig):  # type: ignore[misc]
    """UMT5's encoder: T5's with the attention mask, which optimum leaves out."""

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {**super().inputs, "attention_mask": {0: "batch_size", 1: "sequence_length"}}


class TextEncoder(nn.Module):
    """input_ids, attention_mask [1, L] int64 → embeddings [1, L, D] float32, zero where the mask is zero."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask)["last_hidden_state"]
        return hidden.float() * attention_mask.unsqueeze(-1)


def trace_umt5(folder: Path, dtype: torch.dtype) -> Traced:
    """The text encoder of the checkpoint folder `folder`, in `dtype`."""
    config = UMT5Config.from_pretrained(folder)
    with meta_module():
        encoder = UMT5EncoderModel(config)
    set_precision(encoder, dtype, keep=encoder._keep_in_fp32_modules if dtype == torch.float16 else None)
    onnx_config = UMT5EncoderOnnxConfig(config, task="feature-extraction")
    inputs = [Declared(name=name, dtype="int64", shape=(1, "L")) for name in onnx_config.inputs]
    with onnx_config.patch_model_for_export(encoder):
        return trace(
            TextEncoder(encoder),
            inputs,
            ["embeddings"],
            axes={"L": 24},
            sources={"encoder.": UMT5Weights(folder)},
            key=("umt5", config.to_json_string(use_diff=False), dtype),
        )


class UMT5Weights(Checkpoint):
    """UMT5 stores the embedding that encoder and decoder share once, under either name."""

    _NAMES = ("shared.weight", "encoder.embed_tokens.weight")

    def __contains__(self, name: str) -> bool:
        return super().__contains__(self._stored(name))

    def read(self, name: str) -> torch.Tensor:
        return super().read(self._stored(name))

    def _stored(self, name: str) -> str:
        if name in self._NAMES:
            return next((other for other in self._NAMES if super(UMT5Weights, self).__contains__(other)), name)
        return name


def text_length(tokenizer: Path) -> int:
    """How many tokens prompts are padded to: the tokenizer's own limit where it has one, else Wan's 512."""
    config = _read_json(tokenizer / "tokenizer_config.json")
    limit = config.get("model_max_length")
    return min(int(limit), _LONGEST) if isinstance(limit, int | float) and limit > 0 else _LONGEST


def tokenizer_json(tokenizer: Path) -> bytes:
    """The tokenizer as `tokenizer.json`: copied where the checkpoint has it, converted from SentencePiece otherwise."""
    ready = tokenizer / "tokenizer.json"
    if ready.is_file():
        return ready.read_bytes()
    try:
        fast = AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True, use_fast=True)
    except (OSError, ValueError, ImportError) as exc:
        raise BundleError(
            f"{tokenizer} holds no tokenizer that can be read ({exc}). Copy the checkpoint again."
        ) from exc
    text: str = fast.backend_tokenizer.to_str()
    return text.encode()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise BundleError(f"{path} cannot be read ({exc}). Copy the checkpoint again.") from exc
    if not isinstance(value, dict):
        raise BundleError(f"{path} is no JSON object. Copy the checkpoint again.")
    return value
