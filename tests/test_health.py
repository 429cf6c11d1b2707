"""Fail open, visibly: counted, reported once, never raised (unless strict)."""

import logging

import pytest

from divmon.errors import ConfigError, DivmonError
from divmon.health import PARTS, Health


def fail(health, part="metric", name="mine", error=None):
    with health.shield(part, name):
        raise error or ZeroDivisionError("it broke")


def test_what_fails_is_counted_and_reported_once_for_each_part_and_name(caplog):
    health = Health()
    for name in ("mine", "mine", "yours", "mine"):
        fail(health, name=name)
    fail(health, part="sink")
    fail(health, part="disk", name="")
    assert health.row() == {**{f"{part}_failures": 0.0 for part in PARTS}, "metric_failures": 4.0,
                            "sink_failures": 1.0, "disk_failures": 1.0}  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        f"divmon: {what} failed and was skipped; training goes on (ZeroDivisionError: it broke). Counted in "
        f"divmon/health/{what.split()[0]}_failures, not reported again."
        for what in ("metric 'mine'", "metric 'yours'", "sink 'mine'", "disk")
    ]
    assert {(record.name, record.levelno) for record in caplog.records} == {("divmon", logging.WARNING)}


def test_the_traceback_is_there_for_whoever_debugs(caplog):
    with caplog.at_level(logging.DEBUG, logger="divmon"):
        fail(Health())
    assert caplog.records[0].exc_info[0] is ZeroDivisionError
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="divmon"):
        fail(Health())
    assert not caplog.records[0].exc_info


def test_a_failure_without_an_exception(caplog):
    health = Health()
    health.failed("quality", "gold", "raised on 3 completions")
    assert "quality 'gold' failed and was skipped; training goes on (raised on 3 completions)" in caplog.text
    assert health.failures["quality"] == 1


def test_what_succeeds_leaves_no_trace(caplog):
    health = Health()
    with health.shield("sampler"):
        found = 1
    assert found == 1
    assert not any(health.failures.values())
    assert not caplog.records


@pytest.mark.parametrize("strict", [True, False])
def test_a_config_error_passes(strict):
    health = Health(strict=strict)
    with pytest.raises(ConfigError, match="write this instead"):
        fail(health, error=ConfigError("write this instead"))
    assert not any(health.failures.values())


def test_a_config_error_is_a_failure_like_any_other_once_training_has_begun():
    health = Health()
    health.opening = False
    fail(health, error=ConfigError("write this instead"))
    assert sum(health.failures.values()) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_a_user_who_wants_out_gets_out(error):
    with pytest.raises(type(error)):
        fail(Health(), error=error)


def test_strict_lets_everything_through(caplog):
    health, error = Health(strict=True), ZeroDivisionError("it broke")
    with pytest.raises(ZeroDivisionError) as caught:
        fail(health, error=error)
    assert caught.value is error
    with pytest.raises(ZeroDivisionError):
        health.failed("mitigation", "act", error)
    with pytest.raises(DivmonError, match="quality 'gold': raised on 3 completions"):
        health.failed("quality", "gold", "raised on 3 completions")
    assert not caplog.records


def test_time_is_added_up_also_when_the_block_raises(monkeypatch):
    ticks = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr("divmon.health.time.perf_counter", lambda: next(ticks))
    health = Health()
    with health.timed():
        pass
    with pytest.raises(ValueError), health.timed():
        raise ValueError
    assert health.seconds == 2.5
