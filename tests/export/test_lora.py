"""LoRAs that are added to a transformer's weights: their formats, what they come to, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from safetensors.torch import load_file, save_file

from kinograph.bundle import Bundle
from kinograph.bundle.lora import Lora
from kinograph.bundle.lora_names import FAMILIES
from kinograph.cli import main
from kinograph.errors import BundleError, UsageError
from kinograph.export import ExportOptions, export
from kinograph.export.families.wan.tiny import save_tiny_checkpoint
from kinograph.export.lora import AdaptedCheckpoint
from kinograph.runtime.adapted import AdaptedBundle

RANK = 3
LAYERS = {  # diffusers' names, and those of Wan's own code
    "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
    "blocks.1.attn1.to_out.0": "blocks.1.self_attn.o",
    "blocks.0.attn2.to_v": "blocks.0.cross_attn.v",
    "blocks.1.ffn.net.0.proj": "blocks.1.ffn.0",
    "blocks.0.ffn.net.2": "blocks.0.ffn.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "proj_out": "head.head",
}
INNER = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}
BLOCKS = {
    f"blocks.{block}.{ours}": f"blocks.{block}.{original}"
    for block in (0, 1)
    for ours, original in (
        *((f"attn1.{ours}", f"self_attn.{original}") for ours, original in INNER.items()),
        *((f"attn2.{ours}", f"cross_attn.{original}") for ours, original in INNER.items()),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
    )
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint("t2v", tmp_path_factory.mktemp("lora") / "t2v")


def pairs(checkpoint: Path, layers: Mapping[str, str] = LAYERS) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A random A [r, in] and B [out, r] for each layer."""
    torch.manual_seed(1)
    weights = load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    shapes = {layer: weights[f"{layer}.weight"].shape for layer in layers}
    return {layer: (torch.randn(RANK, into), torch.randn(out, RANK)) for layer, (out, into) in shapes.items()}


def diffusers_file(path: Path, checkpoint: Path, alpha: float | None = None) -> Path:
    tensors = {}
    for layer, (down, up) in pairs(checkpoint).items():
        tensors |= {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
    settings = {"lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": alpha})}
    save_file(tensors, path, metadata=None if alpha is None else settings)
    return path


def diffsynth_file(path: Path, checkpoint: Path) -> Path:
    tensors = {}
    for layer, (down, up) in pairs(checkpoint).items():
        tensors |= {f"{LAYERS[layer]}.lora_A.default.weight": down, f"{LAYERS[layer]}.lora_B.default.weight": up}
    save_file(tensors, path)
    return path


def original_file(path: Path, checkpoint: Path, alpha: float, layers: Mapping[str, str] = LAYERS) -> Path:
    names = {layer: f"diffusion_model.{original}" for layer, original in layers.items()}
    return _with_alpha(path, checkpoint, alpha, names)


def kohya_file(path: Path, checkpoint: Path, alpha: float, layers: Mapping[str, str] = LAYERS) -> Path:
    names = {layer: "lora_unet_" + original.replace(".", "_") for layer, original in layers.items()}
    return _with_alpha(path, checkpoint, alpha, names)


def _with_alpha(path: Path, checkpoint: Path, alpha: float, names: Mapping[str, str]) -> Path:
    tensors = {}
    for layer, (down, up) in pairs(checkpoint, names).items():
        thin = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha)}
        tensors |= {f"{names[layer]}.{kind}": tensor for kind, tensor in thin.items()}
    save_file(tensors, path)
    return path


def added(checkpoint: Path, *loras: Lora) -> dict[str, torch.Tensor]:
    """How far each weight that is changed is from the checkpoint's own."""
    weights = AdaptedCheckpoint(checkpoint / "transformer", loras, FAMILIES["wan"])
    plain = AdaptedCheckpoint(checkpoint / "transformer", [], FAMILIES["wan"])
    assert plain.changed() == []
    return {name: weights.read(name) - plain.read(name) for name in weights.changed()}


@pytest.mark.parametrize("kind", ["diffusers", "diffusers with alpha", "diffsynth", "original", "kohya"])
def test_every_format_comes_to_the_same(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    alpha = {"diffusers": float(RANK), "diffsynth": float(RANK)}.get(kind, 2.0)
    path = tmp_path / "lora.safetensors"
    if kind.startswith("diffusers"):
        diffusers_file(path, checkpoint, None if kind == "diffusers" else alpha)
    elif kind == "diffsynth":
        diffsynth_file(path, checkpoint)
    else:
        (original_file if kind == "original" else kohya_file)(path, checkpoint, alpha)
    changes = added(checkpoint, Lora(path, 0.5))
    assert changes.keys() == {f"{layer}.weight" for layer in LAYERS}
    for layer, (down, up) in pairs(checkpoint).items():
        torch.testing.assert_close(changes[f"{layer}.weight"], 0.5 * alpha / RANK * up @ down, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("write", [original_file, kohya_file])
def test_names_and_scales_are_those_that_diffusers_reads(
    write: Callable[..., Path], checkpoint: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "lora.safetensors", checkpoint, 2.0, BLOCKS)
    theirs = WanLoraLoaderMixin.lora_state_dict(load_file(path))
    changes = added(checkpoint, Lora(path))
    assert changes.keys() == {f"{layer}.weight" for layer in BLOCKS}
    for layer in BLOCKS:
        product = theirs[f"transformer.{layer}.lora_B.weight"] @ theirs[f"transformer.{layer}.lora_A.weight"]
        torch.testing.assert_close(changes[f"{layer}.weight"], product, rtol=1e-4, atol=1e-5)


def test_differences_and_biases_are_added_too(checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    own = load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    down, up, bias, norm = (torch.randn(*shape) for shape in ((RANK, 48), (48, RANK), (48,), (48,)))
    tensors = {
        "diffusion_model.blocks.0.cross_attn.k.lora_A.weight": down,
        "diffusion_model.blocks.0.cross_attn.k.lora_B.weight": up,
        "diffusion_model.blocks.0.cross_attn.k.diff_b": bias,
        "diffusion_model.blocks.0.norm3.diff": norm,
        "diffusion_model.blocks.0.self_attn.norm_q.diff": norm,
        "transformer.blocks.1.attn1.to_q.lora_A.weight": down,
        "transformer.blocks.1.attn1.to_q.lora_B.weight": up,
        "transformer.blocks.1.attn1.to_q.lora_B.bias": bias,
        "transformer.blocks.1.attn1.to_q.alpha": torch.tensor(6.0),
        "diffusion_model.patch_embedding.diff": torch.ones_like(own["patch_embedding.weight"]),
    }
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "lora.safetensors")
    changes = added(checkpoint, Lora(tmp_path / "lora.safetensors", 2.0), Lora(tmp_path / "lora.safetensors", -1.0))
    expected = {
        "blocks.0.attn2.to_k.weight": up @ down,
        "blocks.0.attn2.to_k.bias": bias,
        "blocks.0.norm2.weight": norm,
        "blocks.0.attn1.norm_q.weight": norm,
        "blocks.1.attn1.to_q.weight": 2 * up @ down,
        "blocks.1.attn1.to_q.bias": 2 * bias,
        "patch_embedding.weight": torch.ones_like(own["patch_embedding.weight"]),
    }
    assert changes.keys() == expected.keys()
    for name, change in changes.items():
        torch.testing.assert_close(change, expected[name], rtol=1e-4, atol=1e-4)


def test_a_bundle_is_that_of_the_merged_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    lora = diffusers_file(tmp_path / "style.safetensors", checkpoint, alpha=1.5)
    assert main(["export", str(checkpoint), str(tmp_path / "ours"), "--lora", f"{lora}@0.25", "--quiet"]) == 0
    transformer = WanTransformer3DModel.from_pretrained(checkpoint / "transformer")
    with torch.no_grad():
        for layer, (down, up) in pairs(checkpoint).items():
            transformer.get_parameter(f"{layer}.weight").add_(0.25 * (1.5 / RANK * (up @ down)))
    merged = save_tiny_checkpoint("t2v", tmp_path / "merged")
    transformer.save_pretrained(merged / "transformer")
    export(merged, tmp_path / "theirs", ExportOptions(parity=False))
    plain = export(checkpoint, tmp_path / "plain", ExportOptions(parity=False)) and Bundle.open(tmp_path / "plain")
    with Bundle.open(tmp_path / "ours") as ours, Bundle.open(tmp_path / "theirs") as theirs:
        assert [(one.name, one.strength, one.expert) for one in ours.manifest.source.loras] == [
            ("style.safetensors", 0.25, 1)
        ]
        assert theirs.manifest.source.loras == ()
        path = "step/fp32/model.safetensors"
        assert ours.manifest.files[path] == theirs.manifest.files[path]
        with AdaptedBundle(plain, [Lora(lora, 0.25)]) as adapted:
            assert adapted.map(path).tobytes() == ours.map(path).tobytes()
            assert adapted.manifest.source.loras == ours.manifest.source.loras
        parity = ours.manifest.components["step"].variants["fp32"].parity
    assert parity is not None and parity.max_abs < 1e-4


def test_each_expert_has_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_tiny_checkpoint("t2v-a14b", tmp_path / "a14b")
    lora = diffusers_file(tmp_path / "low.safetensors", checkpoint)
    export(checkpoint, tmp_path / "plain", ExportOptions(parity=False))
    assert main(["export", str(checkpoint), str(tmp_path / "low"), "--lora-2", str(lora), "--no-parity"]) == 0
    with Bundle.open(tmp_path / "low") as ours, Bundle.open(tmp_path / "plain") as plain:
        changed = {name for name, file in ours.manifest.files.items() if plain.manifest.files[name] != file}
        assert changed == {"step_2/fp32/model.safetensors"}
        adapted = AdaptedBundle(plain, [Lora(lora, expert=2)])
        for name in ("step/fp32/model.safetensors", "step_2/fp32/model.safetensors"):
            assert (adapted.sha256(name) == plain.manifest.files[name].sha256) == (name not in changed)
            assert adapted.map(name).tobytes() == ours.map(name).tobytes()
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "low")]) == 0
    assert "low.safetensors × 1 for expert 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {"transformer.blocks.9.attn1.to_q.lora_A.weight": (3, 48)},
            "1 tensors that belong to none of its layers, or twice",
        ),
        (
            {"transformer.blocks.0.attn1.to_q.hada_w1_a": (3, 48)},
            "1 tensors that belong to none of its layers, or twice",
        ),
        (
            {
                f"{prefix}blocks.0.{q}.lora_A.weight": (3, 48)
                for prefix, q in (("transformer.", "attn1.to_q"), ("", "self_attn.q"))
            },
            "1 tensors that belong to none of its layers, or twice",
        ),
        ({}, "it has none"),
        ({"transformer.blocks.0.attn1.to_q.lora_A.weight": (3, 48)}, "has only A for blocks.0.attn1.to_q"),
        ({"transformer.blocks.0.attn1.norm_q.diff_b": (48,)}, "changes blocks.0.attn1.norm_q.bias, which"),
    ],
)
def test_what_is_no_lora_of_the_model_is_refused(
    tensors: dict[str, tuple[int, ...]], said: str, checkpoint: Path, tmp_path: Path
) -> None:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(BundleError, match=said):
        added(checkpoint, Lora(tmp_path / "lora.safetensors"))


def test_of_a_larger_model_it_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    name = "transformer.blocks.0.attn1.to_q.lora"
    save_file(
        {f"{name}_A.weight": torch.zeros(3, 64), f"{name}_B.weight": torch.zeros(64, 3)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(BundleError, match=r"does not fit blocks.0.attn1.to_q.weight, which has the shape \[48, 48\]"):
        added(checkpoint, Lora(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("options", [["--lora", "missing.safetensors"], ["--lora", "text"], ["--lora-2", "lora"]])
def test_wrong_files_end_an_export_before_it_begins(
    options: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("no safetensors")
    diffusers_file(tmp_path / "lora", checkpoint)
    option, name = options
    assert main(["export", str(checkpoint), str(tmp_path / "out"), option, str(tmp_path / name)]) == 4
    assert name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"transformer.use_dora": True}, "use_dora, which is not supported"),
        ({"transformer.lora_alpha": "four"}, "an alpha is no number"),
        ([], "settings that are no JSON object"),
    ],
)
def test_settings_that_are_not_plain_lora_are_refused(
    settings: object, said: str, checkpoint: Path, tmp_path: Path
) -> None:
    path = diffusers_file(tmp_path / "lora.safetensors", checkpoint, 1.0)
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(BundleError, match=said):
        added(checkpoint, Lora(path))


def test_alphas_of_single_layers_come_first(checkpoint: Path, tmp_path: Path) -> None:
    path = diffusers_file(tmp_path / "lora.safetensors", checkpoint, 1.0)
    settings = {"transformer.lora_alpha": 1.0, "transformer.alpha_pattern": {"attn1.to_q": 6.0}}
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": json.dumps(settings)})
    changes = added(checkpoint, Lora(path))
    for layer, (down, up) in pairs(checkpoint).items():
        alpha = 6.0 if layer.endswith("attn1.to_q") else 1.0
        torch.testing.assert_close(changes[f"{layer}.weight"], alpha / RANK * up @ down, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="strength"):
        added(checkpoint, Lora(path, float("nan")))
