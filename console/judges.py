"""The judges that come with Kinograph, by the names that manifests give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinograph.calibration.judging import Judge

__all__ = ["JUDGES"]


def _starter_world() -> Judge:
    judge: Judge = import_module("kinograph.starter.judging").StarterJudge()  # by name: nothing else here needs it
    return judge


JUDGES: Mapping[str, Callable[[], Judge]] = {"starter-world": _starter_world}
