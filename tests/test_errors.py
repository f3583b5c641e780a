"""Exit codes are an interface: scripts test for them."""

from __future__ import annotations

import inspect

import pytest

import kinograph.errors as errors

EXIT_CODES = {
    "KinographError": 1,
    "UsageError": 2,
    "MissingExtraError": 2,
    "RequestError": 3,
    "BundleError": 4,
    "EngineError": 5,
    "MemoryLimitError": 6,
    "OutputError": 7,
    "NumericError": 8,
    "Interrupted": 130,
}


def test_every_error_has_its_exit_code() -> None:
    names = [name for name in errors.__all__ if name[0].isupper()]
    kinds: list[type[errors.KinographError]] = [getattr(errors, name) for name in names]
    assert {kind.__name__: kind.exit_code for kind in kinds} == EXIT_CODES
    defined = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__}
    assert defined == set(EXIT_CODES)


@pytest.mark.parametrize("name", EXIT_CODES)
def test_one_except_clause_catches_them_all(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.KinographError)


def test_the_tree_drawn_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    for name, code in EXIT_CODES.items():
        (line,) = (line for line in errors.__doc__.splitlines() if name in line.split())
        assert str(code) in line.split()


def test_a_missing_extra_says_how_to_install_it() -> None:
    assert "pip install 'kinograph[export]'" in str(errors.MissingExtraError("Exporting", "export"))
