"""The command `kinograph`. A command reads its options, builds one object, calls one function and prints.

What is heavy to import is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from kinograph.console import Console, json_text
from kinograph.errors import KinographError, UsageError, escape

__all__ = ["main"]

_DEFAULT = "  [default: the bundle's]"
_INTERRUPTED, _TERMINATED, _NO_MEMORY, _INTERNAL = 130, 143, 6, 1


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (drawn at the top of errors.py) and never shows a traceback unasked."""
    before = signal.signal(signal.SIGTERM, _terminate)
    shown, warnings.showwarning = warnings.showwarning, _warn
    try:
        result = kinograph.main(args=None if args is None else list(args), prog_name="kinograph", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", _INTERRUPTED)
    except KinographError as error:
        return _fail(str(error), error.exit_code)
    except MemoryError:
        return _fail("out of memory. Use a smaller --size, fewer --frames or a smaller --variant", _NO_MEMORY)
    except Exception as error:
        message = f"internal error: {type(error).__name__}: {error}. Set KINOGRAPH_DEBUG=1 for the traceback"
        return _fail(message, _INTERNAL)
    finally:
        signal.signal(signal.SIGTERM, before)
        warnings.showwarning = shown


def _fail(message: str, exit_code: int) -> int:
    if os.environ.get("KINOGRAPH_DEBUG") == "1":
        traceback.print_exc()
    print(f"kinograph: {escape(message)}", file=sys.stderr)
    return exit_code


def _warn(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    """A warning as a user should see it: what it says, not where it was raised."""
    print(f"warning: {escape(str(message))}", file=sys.stderr)


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(_TERMINATED)  # unwinds, so that every temporary is removed


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`832x480` as two numbers of pixels."""
    if value is None:
        return None
    match = re.fullmatch(r"(-?[0-9]{1,12})[x×](-?[0-9]{1,12})", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size such as 832x480", ctx, param)
    return int(match[1]), int(match[2])


def _numbers(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[int, ...]:
    """`86,89` and `120` as numbers, each once."""
    parts = [part.strip() for one in value for part in one.split(",")]
    if wrong := [part for part in parts if re.fullmatch("[0-9]{2,3}", part) is None]:
        raise click.BadParameter(f"{wrong[0]!r} is not a compute capability such as 89", ctx, param)
    return tuple(dict.fromkeys(int(part) for part in parts))


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from kinograph.console.doctor import installed_version

        click.echo(f"kinograph {installed_version('kinograph') or '(not installed as a package)'}")
        ctx.exit()


_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
_quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress; warnings and errors only.")
_force_option = click.option("--force", is_flag=True, help="Replace what exists already.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def kinograph() -> None:
    """Text-to-video diffusion models without PyTorch: export once, generate anywhere.

    Exit codes: 0 done, 1 internal error, 2 usage, 3 bad request, 4 bundle refused, 5 device or engine, 6 out of memory,
    7 output, 8 numeric failure, 130 interrupted.
    """


@kinograph.command()
@click.argument("words", nargs=-1, metavar="[BUNDLE] PROMPT")
@click.option("-p", "--prompt", help="The prompt, in place of the argument.")
@click.option("-n", "--negative-prompt", help="What not to show." + _DEFAULT)
@click.option("--size", metavar="WxH", callback=_size, help="Size in pixels." + _DEFAULT)
@click.option("-W", "--width", type=int, help="Width in pixels." + _DEFAULT)
@click.option("-H", "--height", type=int, help="Height in pixels." + _DEFAULT)
@click.option("--frames", type=int, help="Number of frames." + _DEFAULT)
@click.option("--seconds", type=float, help="Time from the first frame to the last, in place of --frames.")
@click.option("--fps", type=float, help="Frames per second of the file." + _DEFAULT)
@click.option("--steps", type=int, help="Denoising steps." + _DEFAULT)
@click.option("--guidance", type=float, help="Guidance scale; 1 is none." + _DEFAULT)
@click.option("--guidance-2", type=float, help="That of a second expert.  [default: --guidance, or the bundle's]")
@click.option("-k", "videos", type=click.IntRange(1, 1000), default=1, help="So many videos, with consecutive seeds.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise, 0 to 2^64 - 1.")
@click.option("--solver", type=click.Choice(["euler", "unipc", "dpmpp-2m"]), help="Sampler." + _DEFAULT)
@click.option("--speed", metavar="LEVEL", help="Leave out steps: a speed level of the bundle, such as balanced.")
@click.option(
    "--image",
    "images",
    metavar="FILE[@FRAME]",
    multiple=True,
    help="A picture that becomes a frame: the first, or that number; -1 is the last. May be given again.",
)
@click.option("--extend", metavar="FILE", help="A film that the video continues, and which goes before it in the file.")
@click.option("--extend-backward", metavar="FILE", help="A film that the video leads to.")
@click.option("--join", nargs=2, metavar="FILE FILE", help="Two films that the video leads from and to.")
@click.option("--remix", metavar="FILE", help="A film that is made anew, as the prompt says.")
@click.option("--strength", type=float, default=0.6, show_default=True, help="How far --remix leaves its film, 0 to 1.")
@click.option("--inpaint", metavar="FILE", help="A film that stays as it is, but for where --mask is white.")
@click.option("--mask", metavar="FILE", help="A picture, or a film: white is made anew, as the prompt says.")
@click.option("--loop", is_flag=True, help="Lead the video back to its beginning.")
@click.option(
    "--fit",
    type=click.Choice(["crop", "pad", "stretch"]),
    default="crop",
    show_default=True,
    help="Pictures and films of another shape.",
)
@click.option("--prompts", metavar="FILE", help="Further prompts with their times, a line each: 0:05 a cat sleeps.")
@click.option("--cuts", is_flag=True, help="Cut from one of the --prompts to the next, and let none become the next.")
@click.option("--window", type=int, help="Frames made at a time; longer videos are made in windows." + _DEFAULT)
@click.option("--overlap", type=int, help="Frames that a window is given of the one before." + _DEFAULT)
@click.option(
    "--anchor/--no-anchor",
    default=None,
    help="Give windows the beginning of what they show, so that it stays itself.  [default: where the model can]",
)
@click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N; auto heeds KINOGRAPH_DEVICE."
)
@click.option("--variant", help="Precision, such as fp32 or fp16.  [default: the best for the device]")
@click.option("--cuda-graph/--no-cuda-graph", "cuda_graphs", default=True, help="Launch many steps on a GPU at once.")
@click.option(
    "--weight-budget",
    type=click.IntRange(1),
    metavar="MB",
    help="Most of a component's weights on the GPU; TensorRT copies the rest in every step.",
)
@click.option(
    "-o", "--output", default="out.mp4", show_default=True, help=".mp4 .mkv .webm .gif .webp, or a folder/ of PNG."
)
@click.option("--codec", help="Video encoder, such as libx265.  [default: libx264; libvpx-vp9 for .webm]")
@click.option("--preview", metavar="FILE", help="Every few steps, a PNG of what the video is going to look like.")
@click.option("--audio", metavar="FILE", help="Sound for the video, looped where it is shorter.")
@click.option("--title", metavar="TEXT", help="Words over the first three seconds.")
@click.option("--captions", metavar="FILE", help="Words from a subtitle file (.srt, .vtt), drawn into the picture.")
@click.option("--font", metavar="FILE", help="For those.  [default: one of the system's that has the characters]")
@click.option("--sheet", metavar="FILE.png", help="Also write frames side by side as one picture.")
@click.option("--latents", metavar="FILE.safetensors", help="Keep the latents, window by window, to go on from.")
@click.option("--resume", is_flag=True, help="Go on from the latents in --latents, if they are there.")
@click.option("--fail-on-blank", is_flag=True, help="Exit 8, without a file, if the video is a single colour.")
@click.option("--no-metadata", is_flag=True, help="No prompt or settings in the file, and no side-car .json.")
@_force_option
@click.option("-v", "--verbose", is_flag=True, help="Print seconds and peak memory of every stage.")
@_json_option
@_quiet_option
def generate(words: tuple[str, ...], **options: Any) -> None:
    """Make a video from a prompt, with BUNDLE or the built-in starter model."""
    job = _job(words, options)
    from kinograph.console.generate import generate as run

    with Console(quiet=options["quiet"]) as console:
        reports = run(job, console)
    if options["as_json"]:
        click.echo(json_text(reports[0] if len(reports) == 1 else {"videos": reports}))
        return
    before = 0.0
    for report in reports:
        seconds = sum(stage["seconds"] for stage in report["stages"])
        click.echo(
            f"{escape(report['output'])}: {report['num_frames']} frames, {report['width']}×{report['height']}, "
            f"{report['fps']:g} fps, seed {report['seed']}, {seconds - before:.1f} s"
        )
        before = seconds
    if options["sheet"]:
        click.echo(f"{escape(os.path.abspath(options['sheet']))}: frames side by side")  # noqa: PTH100
    if options["verbose"]:
        for stage in console.stages:
            expected = f", {stage.expected_bytes / 1e6:.0f} MB expected of models" if stage.expected_bytes else ""
            click.echo(f"  {stage.name:<8} {stage.seconds:8.2f} s   peak {stage.peak_bytes / 1e6:6.0f} MB{expected}")


def _job(words: tuple[str, ...], options: dict[str, Any]) -> Any:
    """The options of `generate` as one object."""
    bundle, prompt = _bundle_and_prompt(words, options["prompt"])
    width, height = _width_and_height(options)
    from kinograph.console.generate import Job
    from kinograph.console.given import films_given, read_cues, read_still
    from kinograph.runtime.request import Request

    request = Request(
        prompt=prompt,
        negative_prompt=options["negative_prompt"],
        width=width,
        height=height,
        num_frames=options["frames"],
        fps=options["fps"],
        num_inference_steps=options["steps"],
        guidance_scale=options["guidance"],
        guidance_scale_2=options["guidance_2"],
        seed=options["seed"],
        solver=options["solver"],
        speed=options["speed"],
        images=tuple(read_still(one) for one in options["images"]),
        **films_given(options),
        remix=options["remix"],
        inpaint=options["inpaint"],
        mask=options["mask"],
        strength=options["strength"],
        loop=options["loop"],
        fit=options["fit"],
        window=options["window"],
        overlap=options["overlap"],
        anchor=options["anchor"],
        cues=read_cues(options["prompts"]),
        cuts=options["cuts"],
    )
    same = (
        "videos",
        "device",
        "cuda_graphs",
        "variant",
        "seconds",
        "output",
        "codec",
        "sheet",
        "latents",
        "resume",
        "force",
        "fail_on_blank",
        "preview",
        "audio",
        "title",
        "captions",
        "font",
    )
    return Job(
        request=request,
        bundle=bundle,
        keep_metadata=not options["no_metadata"],
        weight_budget=options["weight_budget"] and options["weight_budget"] << 20,
        **{name: options[name] for name in same},
    )


def _bundle_and_prompt(words: tuple[str, ...], prompt: str | None) -> tuple[str | None, str]:
    if prompt is not None and len(words) <= 1:
        return (words[0] if words else None), prompt
    if prompt is None and len(words) == 2:
        return words[0], words[1]
    if prompt is None and len(words) == 1:
        if (Path(words[0]) / "bundle.json").is_file():
            raise UsageError(f"{words[0]!r} is a bundle, and the prompt is missing. Give it after the bundle")
        return None, words[0]
    if not words:
        raise UsageError("the prompt is missing. Give it in quotes: kinograph generate 'a red ball rolls left'")
    raise UsageError(f"expected [BUNDLE] PROMPT, but got {len(words)} arguments. Put the prompt in quotes")


def _width_and_height(options: dict[str, Any]) -> tuple[int | None, int | None]:
    if options["size"] is None:
        return options["width"], options["height"]
    if options["width"] is not None or options["height"] is not None:
        raise UsageError("--size and --width or --height both say how large the video is. Give one of them")
    width, height = options["size"]
    return width, height


def _staged(console: Console) -> Callable[[str, int, int], None]:
    """Progress told by a stage's name, what is done, of what, on the console."""
    running = ""

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal running
        if stage != running:
            console.start_stage(stage, total)
            running = stage
        console.update(done, total)

    return progress


@kinograph.command()
@click.argument("latents")
@click.argument("bundle", required=False)
@click.option("-o", "--output", default="out.mp4", show_default=True, help=".mp4 .mkv .webm .gif .webp, or a folder/.")
@click.option("--fps", type=float, help="Frames per second of the file." + _DEFAULT)
@click.option("--codec", help="Video encoder, such as libx265.  [default: libx264; libvpx-vp9 for .webm]")
@click.option("--audio", metavar="FILE", help="Sound for the video, looped where it is shorter.")
@click.option("--device", default="auto", show_default=True, help="auto or cpu.")
@click.option("--variant", help="Precision, such as fp32 or fp16.  [default: the best for the device]")
@_force_option
@_quiet_option
def decode(latents: str, bundle: str | None, quiet: bool, **options: Any) -> None:
    """Make the video of LATENTS, kept by `generate --latents`, with BUNDLE or the built-in starter model."""
    from kinograph.console.decode import decode as run

    with Console(quiet=quiet) as console:
        count = run(latents, bundle, console=console, **options)
    click.echo(f"{escape(options['output'])}: {count} frames")


@kinograph.command()
@click.argument("checkpoint")
@click.argument("bundle")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32", show_default=True)
@click.option("--parity/--no-parity", default=True, show_default=True, help="Compare every graph with PyTorch.")
@click.option("--name", help="Name of the bundle.  [default: the checkpoint folder's]")
@click.option("--size", metavar="WxH", callback=_size, help="Default size in pixels.  [default: the family's]")
@click.option("--frames", "num_frames", type=int, help="Default number of frames.  [default: the family's]")
@click.option("--fps", type=float, help="Default frames per second.  [default: the family's]")
@click.option("--steps", "num_inference_steps", type=int, help="Default denoising steps.  [default: the family's]")
@click.option("--guidance", "guidance_scale", type=float, help="Default guidance scale.  [default: the family's]")
@click.option("--licence", help="The checkpoint's licence, to be kept in the bundle.")
@click.option("--judge", help="Who can tell what the model's videos show: starter-world, for the starter's own.")
@_force_option
@_json_option
@_quiet_option
def export(checkpoint: str, bundle: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Turn a CHECKPOINT folder in diffusers layout into a BUNDLE. Needs kinograph[export]."""
    from kinograph.export import ExportOptions
    from kinograph.export import export as run

    width, height = options.pop("size") or (None, None)
    chosen = ExportOptions(width=width, height=height, **options)
    with Console(quiet=quiet) as console, contextlib.redirect_stdout(sys.stderr):  # torch's exporter prints
        manifest = run(Path(checkpoint), Path(bundle), chosen, _staged(console))
    _print_manifest(manifest, as_json, f"{bundle}: exported {manifest.name} ({manifest.family})")


@kinograph.command()
@click.argument("bundle")
@click.option(
    "--recipe",
    type=click.Choice(["int8", "int8-dynamic", "fp8", "mxfp8", "nvfp4", "int4-weights"]),
    help="What to quantise to.  [default: int8, or nothing with --skip]",
)
@click.option(
    "--skip",
    type=click.Choice(["careful", "balanced", "fast"]),
    multiple=True,
    help="Find a speed level, which leaves out steps; may be given again.",
)
@click.option(
    "--image",
    "images",
    metavar="FILE",
    multiple=True,
    help="Picture to start from, for models that need one; may be given again.  [default: our own]",
)
@click.option("--prompts", metavar="FILE", help="Prompts to calibrate with, one a line.  [default: the project's own]")
@click.option("--runs", type=click.IntRange(1, 4096), default=16, show_default=True, help="Prompts looked into.")
@click.option("--videos", type=click.IntRange(1, 256), default=8, show_default=True, help="Further ones compared.")
@click.option("--judged", type=click.IntRange(1, 4096), default=40, show_default=True, help="Prompts a judge asks for.")
@click.option("--scan/--no-scan", default=True, show_default=True, help="Measure every layer's effect on the velocity.")
@click.option("--device", type=click.Choice(["cpu"]), default="cpu", show_default=True, help="Where it is calibrated.")
@click.option("--force", is_flag=True, help="Replace what is there; write a variant even if it misses the gate.")
@_json_option
@_quiet_option
def calibrate(bundle: str, prompts: str | None, recipe: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Add a quantised variant, or speed levels, to BUNDLE, and say what that cost.

    Exits 8, the bundle untouched, if it cost too much.
    """
    import msgspec

    from kinograph.calibration import CalibrationOptions, find_speeds
    from kinograph.calibration import calibrate as quantise
    from kinograph.console.calibrate import read_prompts, report_text, speeds_text
    from kinograph.console.judges import JUDGES

    chosen = CalibrationOptions(prompts=read_prompts(prompts), recipe=recipe or "int8", **options)
    report = None
    with Console(quiet=quiet) as console:
        if recipe or not chosen.skip:
            report = quantise(Path(bundle), chosen, _staged(console), JUDGES)
        speeds = find_speeds(Path(bundle), chosen, _staged(console)) if chosen.skip else {}
    if as_json:
        told = msgspec.to_builtins(report) if report else {}
        click.echo(json_text({**told, "speeds": msgspec.to_builtins(speeds)}))
        return
    if report:
        page = os.path.join(bundle, f"{report.variant}-report.html")  # noqa: PTH118
        click.echo(report_text(report, bundle))
        click.echo(f"{escape(page)}: frames side by side, every layer")
    if speeds:
        click.echo(speeds_text(speeds, bundle))


@kinograph.command()
@click.argument("bundle", required=False)
@click.option(
    "--target",
    type=click.Choice(["rtx", "tensorrt"]),
    default="rtx",
    show_default=True,
    help="TensorRT for RTX, or TensorRT, which builds on the machine that will run the engines.",
)
@click.option(
    "--sm",
    "capabilities",
    multiple=True,
    metavar="N[,N…]",
    callback=_numbers,
    help="Compute capability of the GPU, such as 89 for Ada; may be given again.  [default: the GPU here]",
)
@click.option("-o", "--output", metavar="FOLDER", help="Put the engines here too, beside an engines.json.")
@click.option("--variant", help="Precision, such as bf16 or int8.  [default: bf16, fp16 or fp32, as there is]")
@click.option("--size", metavar="WxH", callback=_size, help="Size of the videos in pixels." + _DEFAULT)
@click.option("--frames", "num_frames", type=int, help="Number of frames, or of a window's." + _DEFAULT)
@click.option("--workspace", type=click.IntRange(1), metavar="MB", help="Most memory a layer may use to be fast.")
@click.option(
    "--weight-budget",
    type=click.IntRange(1),
    metavar="MB",
    help="For generate with the same: components with more weights can leave some in RAM.",
)
@click.option("--later-versions", is_flag=True, help="With TensorRT: for later versions of the same number, too.")
@click.option(
    "--gpus", type=click.Choice(["same-capability", "ampere-plus"]), help="With TensorRT: for other GPUs as well."
)
@click.option("--into-bundle", is_flag=True, help="Put the engines into BUNDLE itself, hashed like all its files.")
@click.option("--list", "listed", is_flag=True, help="Only show the engines in the cache.")
@click.option("--clean", is_flag=True, help="Only remove the engines in the cache.")
@_force_option
@_json_option
@_quiet_option
def build(
    bundle: str | None,
    listed: bool,
    clean: bool,
    workspace: int | None,
    weight_budget: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Build TensorRT engines of BUNDLE, for GPUs that need not be here, and keep them in the cache (KINOGRAPH_CACHE).

    Needs kinograph[rtx]. What is in the cache already is not built again.
    """
    from kinograph.console.build import BuildJob, card_text, described
    from kinograph.console.build import build as run
    from kinograph.engines.cache import EngineCache

    cache, output = EngineCache(), options["output"]
    if listed or clean:
        cards = cache.clean() if clean else cache.cards()
        if as_json:
            click.echo(json_text({"folder": str(cache.folder), "engines": [described(card) for card in cards]}))
            return
        for card in cards:
            click.echo(escape(("removed " if clean else "") + card_text(card)))
        click.echo(f"{escape(str(cache.folder))}: {len(cards)} engines, {sum(c.bytes for c in cards) / 1e6:.1f} MB")
        return
    width, height = options.pop("size") or (None, None)
    workspace, weight_budget = (size and size << 20 for size in (workspace, weight_budget))
    job = BuildJob(
        bundle=bundle, width=width, height=height, workspace=workspace, weight_budget=weight_budget, **options
    )
    with Console(quiet=quiet) as console:
        built = run(job, console, cache)
    text = json_text({"engines": built})
    if output is not None:
        (Path(output) / "engines.json").write_text(text + "\n", "utf-8")
    if as_json:
        click.echo(text)
        return
    for engine in built:
        name = f"{engine['component']}, {engine['precision']}, sm{engine['compute_capability']}"
        there = "" if engine["built"] else ", was there"
        click.echo(f"{escape(engine['file'] or name)}: {engine['bytes'] / 1e6:.1f} MB{there}")
    where = escape(str(Path(output) / "engines.json") if output is not None else str(cache.folder))
    click.echo(f"{where}: built with {built[0]['builder']}")


@kinograph.command()
@click.argument("bundle", required=False)
@_json_option
@_quiet_option
def inspect(bundle: str | None, as_json: bool, quiet: bool) -> None:
    """Show what BUNDLE, or the built-in starter model, is: geometry, defaults, components, parity figures."""
    manifest = _verified(bundle, quiet)
    if as_json:
        _print_manifest(manifest, True, "")
        return
    from kinograph.console.inspect import manifest_text

    click.echo(manifest_text(manifest))


@kinograph.command()
@click.argument("bundle", required=False)
@_json_option
@_quiet_option
def verify(bundle: str | None, as_json: bool, quiet: bool) -> None:
    """Check every file of BUNDLE, or of the built-in starter model. Exits 4 naming what is wrong."""
    manifest = _verified(bundle, quiet)
    size = sum(file.size for file in manifest.files.values())
    if as_json:
        click.echo(json_text({"name": manifest.name, "files": len(manifest.files), "bytes": size}))
        return
    click.echo(f"{escape(bundle or manifest.name)}: verified {len(manifest.files)} files, {size / 1e6:.1f} MB")


def _verified(bundle: str | None, quiet: bool) -> Any:
    """The manifest of a bundle after all its files have been hashed, with progress."""
    from kinograph.bundle import verify as run
    from kinograph.runtime.locate import find_bundle

    with Console(quiet=quiet) as console:
        console.start_stage("verify", unit="MB")
        hashed: dict[str, int] = {}

        def progress(name: str, done: int) -> None:
            hashed[name] = done
            console.update(sum(list(hashed.values())) / 1e6)

        return run(find_bundle(bundle), progress)


def _print_manifest(manifest: Any, as_json: bool, line: str) -> None:
    if not as_json:
        click.echo(escape(line))
        return
    import msgspec

    click.echo(json_text(msgspec.to_builtins(manifest)))


@kinograph.command()
@_json_option
def doctor(as_json: bool) -> None:
    """Show versions, engines, the machine, and what `--device auto` would use."""
    from kinograph.console.doctor import examine

    report = examine()
    if as_json:
        click.echo(json_text(report))
        return
    from kinograph.console.inspect import doctor_text

    click.echo(doctor_text(report))
