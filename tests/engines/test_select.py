"""Which device a run gets: the best that can be used, and every reason why a better one cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kinograph.engines import select
from kinograph.engines.select import Settings, candidates, chosen_name, open_device, open_next
from kinograph.errors import EngineError, UsageError


def opened(backend: str, name: str) -> Any:
    return SimpleNamespace(backend=f"{backend} 1.0", name=name)


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, Settings]]]:
    """Puts backends in place of those on CUDA: their names, and why each cannot be used, or what it fails with."""

    def put(*found: tuple[str, str | EngineError | None], gpu: bool = True) -> list[tuple[str, Settings]]:
        asked: list[tuple[str, Settings]] = []

        def of(name: str, problem: str | EngineError | None) -> Any:
            def open_one(index: int, settings: Settings) -> Any:
                asked.append((name, settings))
                if isinstance(problem, EngineError):
                    raise problem
                return opened(name, f"cuda:{index}")

            return name, lambda index: problem if isinstance(problem, str) else None, open_one

        monkeypatch.setattr(select, "_ON_CUDA", tuple(of(*one) for one in found))
        monkeypatch.setattr(select, "_open_cpu", lambda settings: opened("onnxruntime", "cpu"))
        monkeypatch.setattr(select, "_GPU_FILES", ("/dev/null",) if gpu else ("/nowhere",))
        monkeypatch.delenv("KINOGRAPH_DEVICE", raising=False)
        return asked

    return put


@pytest.mark.parametrize(
    ("found", "expected", "told"),
    [
        ([("RTX", None), ("ORT", None)], "RTX 1.0", []),
        ([("RTX", "not installed"), ("ORT", None)], "ORT 1.0", ["RTX on cuda:0: not installed"]),
        ([("RTX", EngineError("it broke")), ("ORT", None)], "ORT 1.0", ["RTX on cuda:0: it broke"]),
        ([("RTX", "not installed"), ("ORT", "for the CPU")], "onnxruntime 1.0", ["not installed", "for the CPU"]),
    ],
)
def test_the_best_that_can_be_used_and_why_no_better(
    backends: Callable[..., Any], found: Sequence[Any], expected: str, told: list[str]
) -> None:
    backends(*found)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        device = open_device()
    assert device.backend == expected
    assert len(caught) == bool(told)
    assert all(reason in str(caught[0].message) for reason in told)


def test_without_a_gpu_nothing_is_said(backends: Callable[..., Any]) -> None:
    backends(("RTX", "no driver"), gpu=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_device().name == "cpu"


def test_a_gpu_that_is_asked_for_is_not_swapped_for_the_cpu(backends: Callable[..., Any]) -> None:
    backends(("RTX", "not installed"), ("ORT", EngineError("it broke")))
    with pytest.raises(EngineError, match=r"RTX on cuda:1: not installed; ORT on cuda:1: it broke\. Use --device cpu"):
        open_device("cuda:1")


def test_how_it_is_to_run_is_handed_on(backends: Callable[..., Any]) -> None:
    asked, settings = backends(("RTX", None)), Settings(graphs=False, weight_budget=1 << 30)
    open_device("cuda", settings)
    assert asked == [("RTX", settings)]


def test_a_weight_budget_is_not_passed_over() -> None:
    with pytest.raises(EngineError, match=r"onnxruntime on cpu: a --weight-budget is TensorRT's.*Leave out --weight-b"):
        open_device("cpu", Settings(weight_budget=1 << 20))


def test_what_turned_out_to_be_of_no_use_gives_way_to_the_next(backends: Callable[..., Any]) -> None:
    backends(("RTX", None), ("TensorRT", "not installed"), ("ORT", None))
    with pytest.warns(RuntimeWarning, match="ORT 1.0 is used: no engine for this; TensorRT on cuda:0: not installed"):
        after = open_next(opened("RTX", "cuda:0"), "no engine for this")
    assert after is not None and after.backend == "ORT 1.0"
    with pytest.warns(RuntimeWarning, match="onnxruntime 1.0 is used: it broke"):
        last = open_next(after, "it broke")
    assert last is not None and last.name == "cpu"
    assert open_next(last, "even that broke") is None


def test_the_environment_names_the_device_where_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINOGRAPH_DEVICE", "cpu")
    assert chosen_name() == "cpu" and chosen_name("cuda") == "cuda"
    assert [(one.name, one.backend) for one in candidates()] == [("cpu", "onnxruntime")]


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:1\n", "CPU", "cuda:9999"])
def test_unknown_names_are_usage_errors(name: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N"):
        chosen_name(name)
