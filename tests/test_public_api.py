"""The public names, and nothing else."""

from __future__ import annotations

import inspect

import pytest

import divmon
from divmon.settings import Settings, SettingsKwargs


def test_every_public_name_loads_and_is_documented() -> None:
    for name in divmon.__all__:
        value = getattr(divmon, name)
        assert value is not None
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name


def test_dir_shows_the_public_names_and_unknown_ones_fail() -> None:
    assert dir(divmon) == sorted(divmon.__all__)
    with pytest.raises(AttributeError, match="diversity"):
        divmon.diversity  # noqa: B018


def test_watch_is_a_function_whatever_was_imported_before() -> None:
    import divmon.attach

    assert callable(divmon.watch)


def test_keyword_arguments_are_the_settings() -> None:
    assert set(SettingsKwargs.__annotations__) == set(Settings.__dataclass_fields__) - {"probes"}
