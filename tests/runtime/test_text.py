"""Prompts are cleaned and tokenized exactly as diffusers and transformers do; what does not fit is refused."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from kinograph.errors import BundleError, RequestError
from kinograph.manifest import Text
from kinograph.runtime.text import MAX_PROMPT_BYTES, Tokenizer, clean

ALL = ("ftfy", "html", "whitespace")
TEXT = Text(tokenizer="tokenizer.json", length=12, dim=8, cleaning=ALL)
PROMPTS = [
    "a red ball rolls left",
    "",
    "   ",
    "a\tred \n ball\u00a0rolls",
    "Tom &amp;amp; Jerry &lt;3 &quot;x&quot;",
    "&nbsp; ball &nbsp;",
    "caf\u00c3\u00a9 d\u00e9j\u00e0 vu",  # "café" decoded with the wrong code page
    "\u201ccurly\u201d \uff26\uff55\uff4c\uff4c width \ufb01",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
    "\x1b[31mred\x1b[0m ball\x07",
    "\U0001f680 rocket",
]


def tokenizer_json(pad_and_cut: bool = False) -> bytes:
    """A tiny Unigram tokenizer with T5's layout: pad, eos, unk, then pieces with ▁ for a space."""
    words = ["▁a", "▁red", "▁ball", "▁rolls", "▁left", "▁"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(piece, -float(rank + 1)) for rank, piece in enumerate([*words, *"abcdefghijklmnopqrstuvwxyz&<3\"'"])]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    if pad_and_cut:
        tokenizer.enable_padding(length=64, pad_id=0, pad_token="<pad>")
        tokenizer.enable_truncation(3)
    return tokenizer.to_str().encode()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_cleaning_is_that_of_diffusers(prompt: str) -> None:
    pipeline = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan")
    assert clean(prompt, ALL) == pipeline.prompt_clean(prompt)


@given(st.text())
def test_cleaning_any_text_is_that_of_diffusers(prompt: str) -> None:
    pipeline = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan")
    assert clean(prompt, ALL) == pipeline.prompt_clean(prompt)


def test_cleaning_steps_are_separate_and_ordered() -> None:
    assert clean(" a &amp;\n b ", ()) == " a &amp;\n b "
    assert clean(" a &amp;\n b ", ("whitespace",)) == "a &amp; b"
    assert clean(" a &amp;amp;\n b ", ("html",)) == "a &\n b"
    with pytest.raises(BundleError, match="lowercase"):
        clean("a", ("lowercase",))


def reference(prompt: str, length: int) -> np.ndarray:
    """What diffusers hands to the text encoder, without the padding."""
    transformers: Any = pytest.importorskip("transformers")
    pipeline = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan")
    fast = transformers.T5TokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer_json().decode()), extra_ids=0
    )
    encoded = fast(pipeline.prompt_clean(prompt), padding="max_length", max_length=length, truncation=True)
    return np.array(encoded["input_ids"])[: sum(encoded["attention_mask"])]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_of_transformers(prompt: str) -> None:
    text = Text(tokenizer="tokenizer.json", length=40, dim=8, cleaning=ALL)
    ids = Tokenizer(tokenizer_json(), text).encode(prompt)
    assert ids.dtype == np.int64 and ids[-1] == 1
    assert ids.tolist() == reference(prompt, 40).tolist()


def test_padding_and_truncation_in_the_file_do_not_leak() -> None:
    plain, leaky = (Tokenizer(tokenizer_json(flag), TEXT) for flag in (False, True))
    assert leaky.encode("a red ball rolls left").tolist() == plain.encode("a red ball rolls left").tolist()


def test_too_many_tokens_are_refused_unless_cutting_was_asked_for() -> None:
    tokenizer = Tokenizer(tokenizer_json(), TEXT)
    prompt = "a red ball rolls left " * 4
    with pytest.raises(RequestError, match=r"negative prompt has 21 tokens, but the model reads 12.*last 9.*43 %"):
        tokenizer.encode(prompt, what="negative prompt")
    cut = tokenizer.encode(prompt, truncate=True)
    assert cut.tolist() == reference(prompt, 12).tolist()
    assert len(cut) == 12 and cut[-1] == 1
    assert len(tokenizer.encode("a red ball rolls left " * 2 + "a")) == 12  # as many as fit


@pytest.mark.parametrize("prompt", ["x" * 10_000_000, "ä" * (MAX_PROMPT_BYTES // 2 + 1), "&" * 100_000])
def test_huge_prompts_are_refused_unread(prompt: str) -> None:
    tokenizer = Tokenizer(tokenizer_json(), TEXT)
    start = time.perf_counter()
    with pytest.raises(RequestError, match="Shorten it"):
        tokenizer.encode(prompt, truncate=True)
    assert time.perf_counter() - start < 0.5  # seconds; reading 10 MB would take several


@pytest.mark.parametrize(("prompt", "words"), [("a\0b", "character 2 is NUL"), ("ab\ud800", "character 3 .*U\\+D800")])
def test_what_is_no_text_is_refused(prompt: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Tokenizer(tokenizer_json(), TEXT).encode(prompt)


def _changed(**model: object) -> bytes:
    value = json.loads(tokenizer_json())
    value["model"].update(model)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"\xff\xfe", b"[" * 100_000, tokenizer_json()[:-50], _changed(vocab=[]), _changed(unk_id=999)],
    ids=["empty", "no model", "not UTF-8", "nested", "cut", "no vocabulary", "unknown id out of range"],
)
def test_a_broken_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(data, TEXT)


def test_a_tokenizer_that_fails_on_a_prompt_is_refused() -> None:
    with pytest.raises(BundleError, match="cannot tokenize"):
        Tokenizer(_changed(unk_id=None), TEXT).encode("\U0001f680")
