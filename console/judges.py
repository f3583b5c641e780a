"""The judges that come with Kinograph, by the names that manifests give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinograph.calibration.judging import Judge

__all__ = ["JUDGES"]


def _starter_world() -> Judge:
    from kinograph.starter.judging import StarterJudge

    return StarterJudge()


JUDGES: Mapping[str, Callable[[], Judge]] = {"starter-world": _starter_world}
