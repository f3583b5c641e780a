"""What the graphs and the tokenizer of a bundle must hold, whoever wrote their hashes into the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from kinograph.bundle.graph_check import MAX_GRAPH_BYTES, graph_problems
from kinograph.bundle.refusal import printable
from kinograph.bundle.tree import OpenFile
from kinograph.manifest import Manifest

__all__ = ["content_problems"]

_MAX_TOKENIZER_BYTES = 64 << 20  # Gemma's, the largest in use, has 33 MB
_MAX_VOCABULARY = 1 << 21  # entries; the largest in use have 262 144
_MAX_MERGES_PER_ENTRY = 8  # Gemma has 2: sentencepiece lists every way to split a token


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]]
    merges: list[str | tuple[str, str]] = []


class _Tokenizer(msgspec.Struct):
    model: _Model


def content_problems(manifest: Manifest, files: Mapping[str, OpenFile]) -> Iterator[str]:
    """What is wrong inside the graphs and the tokenizer, of which all files are listed and hashed already."""
    sizes = {name: file.size for name, file in manifest.files.items()}
    tokenizer = manifest.text.tokenizer
    yield from (f"{printable(tokenizer)} {problem}" for problem in _tokenizer_problems(files[tokenizer]))
    for component in manifest.components.values():
        for variant in component.variants.values():
            graph = files[variant.graph]
            if graph.size > MAX_GRAPH_BYTES:
                yield f"{printable(variant.graph)} has {graph.size} bytes, expected at most {MAX_GRAPH_BYTES}"
                continue
            problems = graph_problems(graph.read(), variant, sizes)
            yield from (f"{printable(variant.graph)} {problem}" for problem in problems)


def _tokenizer_problems(file: OpenFile) -> Iterator[str]:
    """Only what would make loading it expensive or meaningless; the rest is the tokenizer library's to judge."""
    if file.size > _MAX_TOKENIZER_BYTES:
        yield f"has {file.size} bytes, expected at most {_MAX_TOKENIZER_BYTES}"
        return
    try:
        model = msgspec.json.decode(file.read(), type=_Tokenizer).model
    except (ValueError, RecursionError) as exc:
        yield f"is not a tokenizer with a model and a vocabulary: {printable(exc)}"
        return
    if not model.vocab or len(model.vocab) > _MAX_VOCABULARY:
        yield f"has a vocabulary of {len(model.vocab)} entries, expected 1 to {_MAX_VOCABULARY}"
    elif len(model.merges) > _MAX_MERGES_PER_ENTRY * len(model.vocab):
        yield f"has {len(model.merges)} merges for a vocabulary of {len(model.vocab)}, expected far fewer"
