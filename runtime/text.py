"""From a prompt to token ids: check, clean as the model's own pipeline does, tokenize, and refuse what does not fit."""

from __future__ import annotations

import contextlib
import html
import re
import threading
from collections.abc import Iterable, Iterator

import ftfy
import numpy as np
import numpy.typing as npt
import tokenizers  # type: ignore[import-untyped]

from kinograph.errors import BundleError, RequestError
from kinograph.manifest import Text

__all__ = ["MAX_PROMPT_BYTES", "Tokenizer", "check_prompt", "clean"]

MAX_PROMPT_BYTES = 1 << 16
"""64 KiB of UTF-8: 128 bytes for each of the 512 tokens text encoders read. Longer prompts are refused unread."""

_WHITESPACE = re.compile(r"\s+")


def check_prompt(prompt: str, what: str = "prompt") -> None:
    """Refuse a prompt that is not text, or far too long to be one. Valid Unicode is accepted, whatever its direction.

    Raises RequestError naming `what` and the place of the first character that cannot be.
    """
    size = len(prompt)  # characters; encoding a prompt of gigabytes only to measure it would take as much again
    if size <= MAX_PROMPT_BYTES:
        try:
            size = len(prompt.encode("utf-8"))
        except UnicodeEncodeError as error:
            code = f"U+{ord(prompt[error.start]):04X}"
            raise RequestError(
                f"the {what} is not valid text: character {error.start + 1} is the lone surrogate {code}. "
                "Remove it, or check that the text was read as UTF-8"
            ) from error
    if size > MAX_PROMPT_BYTES:
        raise RequestError(f"the {what} has at least {size} bytes, but {MAX_PROMPT_BYTES} is the most. Shorten it")
    if "\0" in prompt:
        raise RequestError(f"the {what} is not valid text: character {prompt.index(chr(0)) + 1} is NUL. Remove it")


def clean(prompt: str, cleaning: Iterable[str]) -> str:
    """The prompt after the named steps, in their order.

    `ftfy` repairs mis-decoded text, `html` resolves entities (twice, as some captions are escaped twice) and strips,
    `whitespace` makes every run of white space one space and strips. All three are diffusers' `prompt_clean` of Wan.
    Raises BundleError for any other step.
    """
    for step in cleaning:
        if step == "ftfy":
            prompt = ftfy.fix_text(prompt)
        elif step == "html":
            prompt = html.unescape(html.unescape(prompt)).strip()
        elif step == "whitespace":
            prompt = _WHITESPACE.sub(" ", prompt).strip()
        else:
            raise BundleError(f"the bundle asks for the prompt cleaning {step!r}, which is unknown. Upgrade kinograph")
    return prompt


class Tokenizer:
    """A bundle's `tokenizer.json` with the limits the manifest declares; safe to share between threads."""

    def __init__(self, data: bytes, text: Text) -> None:
        """Read the tokenizer from the file's content. Raises BundleError if it is not one."""
        self._text = text
        self._lock = threading.Lock()
        with _mapped(f"{text.tokenizer} is not a tokenizer"):
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()

    def encode(self, prompt: str, *, truncate: bool = False, what: str = "prompt") -> npt.NDArray[np.int64]:
        """The token ids of a prompt, cleaned first: int64 [L'] with L' ≤ L, special tokens included, not padded.

        Raises RequestError, naming `what`, if the prompt is not valid text or has more than L tokens (unless `truncate`
        cuts it on the right, special tokens kept), BundleError if the tokenizer fails.
        """
        check_prompt(prompt, what)
        cleaned = clean(prompt, self._text.cleaning)
        with _mapped(f"{self._text.tokenizer} cannot tokenize"), self._lock:
            ids = self._ids(cleaned, truncate)
        limit = self._text.length
        if len(ids) > limit:
            raise RequestError(
                f"the {what} has {len(ids)} tokens, but the model reads {limit}: it would not see the last "
                f"{len(ids) - limit}. Shorten it by about {-(-100 * (len(ids) - limit) // len(ids))} %"
            )
        if len(ids) == 0:
            raise RequestError(f"the {what} has no tokens, and this model needs one. Write something")
        return ids

    def _ids(self, cleaned: str, truncate: bool) -> npt.NDArray[np.int64]:
        if truncate:
            encoding = self._tokenizer.encode(cleaned, add_special_tokens=False)
            special = self._tokenizer.num_special_tokens_to_add(False)
            encoding.truncate(max(self._text.length - special, 0))
            encoding = self._tokenizer.post_process(encoding)
        else:
            encoding = self._tokenizer.encode(cleaned)
        return np.array(encoding.ids, dtype=np.int64)


@contextlib.contextmanager
def _mapped(what: str) -> Iterator[None]:
    """Turn any error of the tokenizers library, which raises bare exceptions and panics, into a BundleError."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise BundleError(f"the bundle's {what}: {str(error)[:200]}. Export the bundle again") from error
        raise
