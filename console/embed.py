"""The work behind `kinograph embed`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import kinograph
from kinograph.console import Console
from kinograph.console.calibrate import read_prompts as read_lines
from kinograph.errors import OutputError, UsageError
from kinograph.runtime.output import check_target
from kinograph.runtime.prompts import write_prompts

__all__ = ["EmbedJob", "embed"]


class EmbedJob(NamedTuple):
    """What one `embed` is to do: `prompts`, and those of a `file`, by the bundle as it is `opened`, into `output`.

    Negative prompts are the bundle's, where it guides, and those of `negative`. With `force` a file is made anew.
    """

    bundle: str
    prompts: Sequence[str]
    file: str | None
    negative: Sequence[str]
    output: str
    force: bool
    opened: Mapping[str, Any]


def embed(job: EmbedJob, console: Console) -> dict[str, Any]:
    """Embed what the file has not, and write it; returns the report that `--json` prints."""
    output = job.output
    if not output.endswith(".safetensors"):
        raise OutputError(f"the prompts {output!r} must be .safetensors. Use -o prompts.safetensors")
    asked = [*job.prompts, *(read_lines(job.file) or ())]
    if not asked:
        raise UsageError("there is no prompt. Give some in quotes, or a file with --prompts")
    there = Path(output).exists() and not job.force
    check_target(output, job.force or there)
    opened = {**job.opened, "embedded": output if there else None}
    with kinograph.load(job.bundle, **opened, progress=console.start_bytes("load")) as pipe:
        manifest, variant = pipe.bundle.manifest, pipe.variant["text_encoder"]
        wanted = job.opened["variant"]
        if there and wanted in manifest.components["text_encoder"].variants and wanted != variant:
            raise UsageError(f"{output} has prompts of the {variant} text encoder. Leave out --variant, or use --force")
        guided = any(expert.guidance_scale > 1 for expert in manifest.experts)
        every = [*asked, *job.negative, *([manifest.defaults.negative_prompt] if guided else [])]
        before = pipe.prompts.given if there else {}
        console.start_stage("embed", len(every), "prompts")
        rows = pipe.embed(every, console.update)
        if rows.keys() - before.keys() or not there:
            write_prompts(Path(output), pipe.bundle, manifest, variant, before | rows)
    return {
        "output": os.path.abspath(output),  # noqa: PTH100 - as the user named it
        "prompts": len(before | rows),
        "new": len(rows.keys() - before.keys()),
        "variant": variant,
        "bundle": manifest.name,
        "bytes": Path(output).stat().st_size,
    }
