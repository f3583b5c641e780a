"""Which layers are quantised to what, from what each does to the result."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kinograph.calibration.work import Work, choose


def work(sizes: list[int], effects: list[float], finer: list[float] | None = None) -> Work:
    made: Any = Work(SimpleNamespace(), [], SimpleNamespace())  # type: ignore[arg-type]
    made.plans = [SimpleNamespace(size=size, noise=30.0, format="coarse") for size in sizes]
    made.finer = [SimpleNamespace(size=size, noise=40.0, format="finer") for size in sizes] if finer else []
    made.effects = [*effects, *(finer or [])]
    return made


def formats(made: Work) -> list[str | None]:
    chosen = choose(made, 30.0)
    return [chosen[i].format if i in chosen else None for i in range(len(made.plans))]


def test_what_does_little_harm_is_quantised() -> None:
    assert formats(work([10] * 20, [1e-6] * 20)) == ["coarse"] * 20


def test_the_worst_for_its_weight_stays_up_to_a_tenth_of_the_weights() -> None:
    assert formats(work([10] * 20, [0.1, 0.01, *[1e-6] * 18])) == [None, None, *["coarse"] * 18]
    assert formats(work([10] * 20, [0.1, 0.1, 0.1, *[1e-6] * 17])).count(None) == 2
    assert formats(work([100, *[10] * 10], [0.1, *[1e-6] * 10]))[0] == "coarse"  # too large a part to leave


def test_finer_ones_come_first_and_as_few_as_will_do() -> None:
    made = work([10] * 20, [0.1, 0.05, 0.001, *[1e-6] * 17], [1e-5] * 20)
    assert formats(made) == ["finer", "finer", None, *["coarse"] * 17]
    made = work([10] * 20, [0.1] * 20, [0.2] * 20)  # more bits that are worse are of no use
    assert "finer" not in formats(made)


def test_without_a_scan_a_layers_own_error_decides() -> None:
    made = work([10] * 20, [])
    made.plans[3].noise = 5.0
    assert formats(made)[3] is None
