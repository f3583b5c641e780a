"""From the bytes of `bundle.json` to a `Manifest` in which every field, name and cross-reference has been checked.

msgspec stops at the first bad field; somebody repairing a manifest wants them all, so a failed conversion is walked
again field by field.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
import types
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from kinograph.bundle.refusal import MAX_PROBLEMS, printable
from kinograph.bundle.speed_check import speed_problems
from kinograph.manifest import FORMAT_VERSION, Component, Manifest, Tensor, Variant

__all__ = ["MANIFEST_NAME", "ManifestError", "name_problem", "parse_manifest"]

MANIFEST_NAME = "bundle.json"

_MAX_NESTING = 32  # a manifest needs 8
_MAX_FILES = 256  # an open bundle keeps a descriptor for each; 1024 is the usual limit of a process
_MAX_EXPERTS = 2  # a request has two guidance scales
_MAX_DEPTH = 8  # folders
_MAX_PART = 255  # bytes, what file systems allow
_MAX_NAME = 1024  # bytes
_NATIVE_CODE = re.compile(r"\.(so(\.[0-9.]+)?|dll|dylib|pyd)\Z", re.IGNORECASE)
_MAX_TOTAL_BYTES = 1 << 50


class ManifestError(ValueError):
    """A manifest is not fit for use: `problems` say why, `advice` what to do where that is not to copy it again."""

    def __init__(self, problems: list[str], advice: str | None = None) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.advice = advice


def parse_manifest(data: bytes) -> Manifest:
    """The manifest that `data`, the bytes of `bundle.json`, holds.

    Raises ManifestError with every bad field that could be found.
    """
    document = _json_object(data)
    _check_version(document.get("format_version"))
    problems = [f"{MANIFEST_NAME}: {problem}" for problem in _first(_unsound_values(document, ""))]
    problems += [f"{MANIFEST_NAME}: {problem}" for problem in _first(_unfit_fields(document, Manifest, ""))]
    if problems:
        raise ManifestError(problems)
    manifest = msgspec.convert(document, Manifest)
    problems = [f"{MANIFEST_NAME}: {problem}" for problem in _first(_inconsistencies(manifest))]
    if problems:
        raise ManifestError(problems)
    return manifest


def name_problem(name: str) -> str | None:
    """Why `name` cannot be a file of a bundle; None if it can. It must be a relative POSIX path, in NFC, not hidden."""
    parts = name.split("/")
    if name.startswith("/"):
        return "is an absolute path; expected one relative to the bundle"
    if any(part in ("", ".", "..") for part in parts):
        return "is not a normalised path: it has an empty part, '.' or '..'"
    if "\\" in name or not name.isprintable():
        return "has a backslash or a character that cannot be printed"
    if any(part.startswith(".") for part in parts):
        return "is hidden: a bundle has no names that start with a dot"
    if unicodedata.normalize("NFC", name) != name:
        return "is not in Unicode normal form C"
    if len(parts) > _MAX_DEPTH or len(name.encode()) > _MAX_NAME or any(len(p.encode()) > _MAX_PART for p in parts):
        return f"is too long: at most {_MAX_DEPTH} folders, {_MAX_PART} bytes a part, {_MAX_NAME} in all"
    if _NATIVE_CODE.search(name):
        return "is a native library: nothing in a bundle is ever loaded as code"
    return None


def _first(problems: Iterator[str]) -> list[str]:
    """The problems up to one more than is ever shown."""
    return [problem for problem, _ in zip(problems, range(MAX_PROBLEMS + 1), strict=False)]


# JSON -----------------------------------------------------------------------------------------------------------------

# A string (to its end, or to the end of the data if it has none, which keeps the scan linear) or a bracket.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def _json_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; duplicate keys and deep nesting are refused, numbers may still be infinite."""
    depth = 0
    for match in _TOKEN.finditer(data):
        token = data[match.start()]
        depth += (token in b"[{") - (token in b"]}")
        if depth > _MAX_NESTING:
            raise ManifestError([f"{MANIFEST_NAME} is nested more than {_MAX_NESTING} levels deep"])
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return found

    try:
        document = json.loads(data.decode(), object_pairs_hook=unique)
    except ValueError as exc:
        raise ManifestError([f"{MANIFEST_NAME} is not valid JSON: {printable(exc)}"]) from exc
    if repeated:
        shown = repeated[: MAX_PROBLEMS + 1]
        raise ManifestError([f"{MANIFEST_NAME}: the key '{printable(key)}' is given more than once" for key in shown])
    if not isinstance(document, dict):
        raise ManifestError([f"{MANIFEST_NAME} holds a {type(document).__name__}; expected an object"])
    return document


def _check_version(version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool):
        got = "nothing" if version is None else printable(repr(version))
        raise ManifestError([f"{MANIFEST_NAME}: format_version: got {got}, expected an integer"])
    if version > FORMAT_VERSION:
        raise ManifestError(
            [f"it was made by a newer Kinograph: it has format {_integer(version)}, this one reads {FORMAT_VERSION}"],
            "Upgrade Kinograph: pip install --upgrade kinograph",
        )
    if version < FORMAT_VERSION:
        raise ManifestError(
            [f"it was made by an older Kinograph: it has format {_integer(version)}, this one reads {FORMAT_VERSION}"],
            "Export it again from its checkpoint: kinograph export",
        )


def _integer(value: int) -> str:
    """`value` in decimal, unless it is so large that Python refuses to write it out."""
    return str(value) if value.bit_length() < 64 else f"a {value.bit_length()}-bit number"


# Fields ---------------------------------------------------------------------------------------------------------------


def _unsound_values(value: object, path: str) -> Iterator[str]:
    """Problems that no type shows: numbers that are not finite, and text that is not Unicode."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _unsound_values(key, path)
            yield from _unsound_values(item, _join(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unsound_values(item, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{path}: got {value}, expected a finite number"
    elif isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        yield f"{path}: got '{printable(value)}', which is not valid Unicode"


def _unfit_fields(value: object, kind: Any, path: str) -> Iterator[str]:
    """What keeps `value` from being a `kind`, each innermost field by its path."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as exc:
        inner = False
        for problem in _unfit_parts(value, _bare(kind), path):
            inner = True
            yield problem
        if not inner:
            yield f"{path}: {_expectation(exc)}, got {_value(value)}"


def _unfit_parts(value: object, kind: Any, path: str) -> Iterator[str]:
    """The same for what is inside `value`; nothing where it is not a container that fits `kind`."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        hints = get_type_hints(kind, include_extras=True)
        for field in msgspec.structs.fields(kind):
            if field.name in value:
                yield from _unfit_fields(value[field.name], hints[field.name], _join(path, field.name))
            elif field.required:
                yield f"{_join(path, field.name)}: missing"
        yield from (f"{_join(path, key)}: unknown field" for key in value.keys() - hints.keys())
    elif get_origin(kind) is dict and isinstance(value, dict):
        key_kind, item_kind = get_args(kind)
        for key, item in value.items():
            yield from _unfit_fields(key, key_kind, _join(path, key))
            yield from _unfit_fields(item, item_kind, _join(path, key))
    elif get_origin(kind) is tuple and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unfit_fields(item, get_args(kind)[0], f"{path}[{index}]")


def _bare(kind: Any) -> Any:
    """`kind` without its constraints, and without `| None`."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        return _bare(options[0]) if len(options) == 1 else kind
    return kind


def _expectation(error: msgspec.ValidationError) -> str:
    text = str(error).partition(" - at `")[0].partition(", got")[0]
    return printable(text[:1].lower() + text[1:])


def _value(value: object) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool):
        return _integer(value)
    return "null" if value is None else printable(json.dumps(value, ensure_ascii=False))


def _join(path: str, key: str) -> str:
    return f"{path}.{printable(key)}" if path else printable(key)


# Cross-references -----------------------------------------------------------------------------------------------------


def _inconsistencies(manifest: Manifest) -> Iterator[str]:
    """What is wrong between fields that are each fine."""
    if not manifest.name.isprintable():
        yield f"name: got '{printable(manifest.name)}', expected text that can be printed"
    yield from _file_problems(manifest)
    if manifest.text.tokenizer not in manifest.files:
        yield f"text.tokenizer: '{printable(manifest.text.tokenizer)}' is not in files"
    yield from _expert_problems(manifest)
    if manifest.conditioning.image_tokens and "image_encoder" not in manifest.components:
        yield "conditioning.image_tokens: needs a component 'image_encoder', and there is none"
    for name, component in manifest.components.items():
        yield from _component_problems(f"components.{name}", component, manifest)
    yield from _engine_problems(manifest)
    yield from _preview_problems(manifest)
    yield from speed_problems(manifest)


def _file_problems(manifest: Manifest) -> Iterator[str]:
    if len(manifest.files) > _MAX_FILES:
        yield f"files: lists {len(manifest.files)} files, expected at most {_MAX_FILES}"
        return
    if sum(file.size for file in manifest.files.values()) > _MAX_TOTAL_BYTES:
        yield f"files: the sizes add up to more than {_MAX_TOTAL_BYTES} bytes"
    seen: dict[str, str] = {}
    for name in manifest.files:
        problem = name_problem(name)
        if problem is not None:
            yield f"files: '{printable(name)}' {problem}"
            continue
        # Folders too: A/x and a/y are one folder where case does not count.
        for path in _with_parents(name):
            other = seen.setdefault(_folded(path), path)
            if other != path:
                yield f"files: '{printable(path)}' and '{printable(other)}' are one name where case does not count"
        if _folded(name) == MANIFEST_NAME:
            yield f"files: lists '{name}' itself; expected every other file"
        if any(parent in manifest.files for parent in _with_parents(name)[:-1]):
            yield f"files: '{printable(name)}' is inside what is also listed as a file"


def _with_parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _expert_problems(manifest: Manifest) -> Iterator[str]:
    for index, expert in enumerate(manifest.experts):
        if expert.component not in manifest.components:
            yield f"experts[{index}].component: there is no component '{printable(expert.component)}'"
    if len(manifest.experts) > _MAX_EXPERTS:
        yield f"experts: there are {len(manifest.experts)}, expected at most {_MAX_EXPERTS}"
    boundaries = [expert.boundary for expert in manifest.experts]
    if any(later >= earlier for earlier, later in pairwise(boundaries)):
        yield f"experts: the boundaries are {printable(boundaries)}, expected each below the one before"
    if boundaries[-1] != 0:
        yield f"experts[{len(boundaries) - 1}].boundary: got {boundaries[-1]}, expected 0: no timestep may be left over"


def _component_problems(path: str, component: Component, manifest: Manifest) -> Iterator[str]:
    for name, variant in component.variants.items():
        at = f"{path}.variants.{name}"
        for file in (variant.graph, *variant.weights):
            if file not in manifest.files:
                yield f"{at}: '{printable(file)}' is not in files"
        if not variant.graph.endswith(".onnx"):
            yield f"{at}.graph: got '{printable(variant.graph)}', expected a name that ends in .onnx"
        # A graph names its weights by their bare file names.
        folder = posixpath.dirname(variant.graph)
        for file in variant.weights:
            if posixpath.dirname(file) != folder or file == variant.graph:
                yield f"{at}.weights: '{printable(file)}' is not beside the graph '{printable(variant.graph)}'"
        yield from _tensor_problems(at, variant)


def _preview_problems(manifest: Manifest) -> Iterator[str]:
    preview, channels = manifest.preview, manifest.geometry.channels
    if preview is None:
        return
    if len(preview.weights) != channels:
        yield f"preview.weights: got {len(preview.weights)} rows, expected one for each of {channels} channels"
    if not all(math.isfinite(value) for row in (*preview.weights, preview.bias) for value in row):
        yield "preview: expected finite numbers"


def _engine_problems(manifest: Manifest) -> Iterator[str]:
    for index, engine in enumerate(manifest.engines):
        path = f"engines[{index}]"
        if engine.file not in manifest.files:
            yield f"{path}.file: '{printable(engine.file)}' is not in files"
        if not engine.file.endswith(".engine"):
            yield f"{path}.file: got '{printable(engine.file)}', expected a name that ends in .engine"
        if engine.precision not in getattr(manifest.components.get(engine.component), "variants", ()):
            yield f"{path}: there is no component '{engine.component}' in {engine.precision}"
        for axis, (least, most) in engine.axes.items():
            if least > most:
                yield f"{path}.axes.{axis}: got {least} to {most}, expected the least size first"


def _tensor_problems(path: str, variant: Variant) -> Iterator[str]:
    names: set[str] = set()
    for tensor in (*variant.inputs, *variant.outputs):
        if tensor.name in names:
            yield f"{path}: there are two tensors called '{tensor.name}'"
        names.add(tensor.name)
    if not variant.outputs:
        yield f"{path}.outputs: there are none"
    inputs: Mapping[str, Tensor] = {tensor.name: tensor for tensor in variant.inputs}
    for output in variant.outputs:
        fed = inputs.get(output.name.removeprefix("next_"))
        if fed is not None and (fed.dtype, fed.shape) != (output.dtype, output.shape):
            yield (
                f"{path}: the output '{output.name}' is {output.dtype}{list(output.shape)}, "
                f"and the input '{fed.name}' that receives it is {fed.dtype}{list(fed.shape)}"
            )
