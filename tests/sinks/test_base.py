"""What counts as a sink, and which curves a tracker gets."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterable

import numpy as np
import pytest

from divmon.errors import ConfigError
from divmon.records import OVERALL, Measurement, Observation
from divmon.sinks import SINKS, ConsoleSink, WandbSink, as_sink, curves
from divmon.sinks.base import DEFAULT_METRICS, alarm_states, choose, escape_controls, strip_controls

OTHERS = ("distinct_2", "distinct_1", "self_bleu")


def measured(
    domains: Iterable[str], metrics: Iterable[str] = (*DEFAULT_METRICS, *OTHERS), *, value: float = 0.5
) -> tuple[Measurement, ...]:
    """As the monitor orders them: metric by metric, and for each one domain by domain."""
    return tuple(Measurement(step=4, domain=d, metric=m, value=value) for m in metrics for d in domains)


def curve_keys(observation: Observation, **kwargs: object) -> list[str]:
    return list(curves(observation, **kwargs))  # type: ignore[arg-type]


def test_names_objects_and_functions_become_sinks():
    assert isinstance(as_sink("console"), ConsoleSink)
    assert isinstance(as_sink("wandb"), WandbSink)
    assert set(SINKS) == {"console", "trackio", "wandb"}
    sink = ConsoleSink()
    assert as_sink(sink) is sink
    seen: list[Observation] = []
    observation = Observation(step=0, measurements=())
    as_sink(seen.append).emit(observation)
    as_sink(seen.append).close()
    assert seen == [observation]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("wanbd", "Did you mean 'wandb'"),
        (ConsoleSink, r"ConsoleSink\(\)"),
        (3, "function of an observation"),
        (None, "'console', 'trackio', 'wandb'"),
    ],
)
def test_what_is_no_sink_is_refused_with_a_hint(wrong, message):
    with pytest.raises(ConfigError, match=message):
        as_sink(wrong)


def test_a_sink_without_a_name_is_refused():
    class Nameless:
        def emit(self, observation): ...
        def close(self): ...

    with pytest.raises(ConfigError, match="name"):
        as_sink(Nameless())


def test_one_domain_gets_every_family_and_nothing_else():
    keys = curve_keys(Observation(step=4, measurements=measured(["math"])))
    assert keys == [f"divmon/math/{name}" for name in DEFAULT_METRICS if name != "tfidf_distance"]


@pytest.mark.parametrize("domains", [1, 2, 3, 5, 11, 12, 13, 40])
def test_never_more_than_twelve_and_a_distance_for_each_domain_first(domains):
    names = [f"d{i}" for i in range(domains)]
    keys = curve_keys(Observation(step=4, measurements=measured(names)))
    assert len(keys) <= 12
    assert keys[: min(domains, 12)] == [f"divmon/{name}/semantic_distance" for name in names[:12]]


def test_the_surface_distance_stands_in_where_no_encoder_measured():
    rows = measured(["a", "b"], ["tfidf_distance"]) + measured(["b"], ["semantic_distance"])
    keys = curve_keys(Observation(step=4, measurements=rows))
    assert sorted(keys) == ["divmon/a/tfidf_distance", "divmon/b/semantic_distance"]
    asked = curve_keys(Observation(step=4, measurements=rows), metrics=["tfidf_distance"])
    assert asked == ["divmon/a/tfidf_distance", "divmon/b/tfidf_distance"]


def test_the_overall_domain_counts_only_where_no_domain_has_the_metric():
    rows = measured(["a", "b", OVERALL], ["tfidf_distance"]) + measured([OVERALL], ["tail_share"])
    keys = curve_keys(Observation(step=4, measurements=rows))
    assert keys == ["divmon/a/tfidf_distance", "divmon/b/tfidf_distance", "divmon/all/tail_share"]


def test_named_metrics_replace_the_defaults_without_a_limit():
    domains = [f"d{i}" for i in range(9)]
    observation = Observation(step=4, measurements=measured(domains))
    keys = curve_keys(observation, metrics=["distinct_1", "self_bleu", "not_measured"])
    assert keys == [f"divmon/{d}/{m}" for m in ("distinct_1", "self_bleu") for d in domains]


def test_the_choice_depends_on_nothing_but_the_observation():
    observation = Observation(step=4, measurements=measured(["a", "b", "c"]))
    assert len({tuple(curve_keys(observation)) for _ in range(5)}) == 1


def test_curves_chosen_before_keep_their_place():
    full = Observation(step=4, measurements=measured(["a", "b", "c"]))
    keep = choose(full)
    gap = Observation(step=8, measurements=(*measured(["a"], value=math.nan), *measured(["b", "c"])))
    assert choose(gap, keep=keep) == keep
    assert set(curve_keys(gap, keep=keep)) == {f"divmon/{k}" for k in keep if not k.startswith("a/")}
    assert choose(gap) != keep  # without a memory, freed places would be filled by other curves


def test_only_finite_python_floats():
    rows = tuple(
        Measurement(step=4, domain="d", metric=name, value=value)
        for name, value in (
            ("tfidf_distance", np.float32(0.25)),
            ("coverage", math.nan),
            ("pass_at_1", math.inf),
            ("token_entropy", 1),
        )
    )
    health = {"seconds": np.float64(2.0), "overhead": math.nan}
    row = curves(Observation(step=4, measurements=rows, health=health))
    assert row == {"divmon/d/tfidf_distance": 0.25, "divmon/d/token_entropy": 1.0, "divmon/health/seconds": 2.0}
    assert {type(value) for value in row.values()} == {float}
    json.dumps(row, allow_nan=False)


def test_alarm_levels_are_the_highest_over_domains_and_outside_the_limit():
    states = {"x/a": "inactive", "x/b": "firing", "x/c/d": "pending", "y/a": "pending", "z/a": "unknown"}
    observation = Observation(
        step=4,
        measurements=measured(["a", "b"]),
        states=states,  # type: ignore[arg-type]
        health={"failures": 0.0},
    )
    row = curves(observation)
    assert [row[f"divmon/alarm/{name}"] for name in "xyz"] == [2.0, 1.0, 0.0]
    assert len(row) == 12 + 3 + 1
    assert alarm_states(observation) == {"x": "firing", "y": "pending", "z": "unknown"}


def test_hostile_characters_are_removed_or_shown():
    text = "a\x00b\x1b[31mc\ud800d\u202ee\u2028f\x85g\ttab\nline é 漢 😀"
    assert strip_controls(text) == "ab[31mcdefgtabline é 漢 😀"
    assert strip_controls(text, keep="\n\t").endswith("g\ttab\nline é 漢 😀")
    shown = escape_controls(text)
    assert shown == "a\\x00b\\x1b[31mc\\ud800d\\u202ee\\u2028f\\x85g\\ttab\\nline é 漢 😀"
    assert shown.encode("utf-8")
    assert strip_controls("x" * 10, limit=4) == "xxx…"


def test_a_hostile_domain_makes_a_printable_key():
    rows = (Measurement(step=0, domain="a\n\ud800b", metric="tfidf_distance", value=1.0),)
    assert curve_keys(Observation(step=0, measurements=rows)) == ["divmon/ab/tfidf_distance"]


def test_importing_the_sinks_loads_no_tracker():
    code = "import sys, divmon.sinks as s; s.as_sink('wandb'); print('wandb' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_metrics_of_the_users_own_come_first_and_are_never_invisible():
    def measured(*names: str) -> Observation:
        return Observation(1, tuple(Measurement(1, "math", name, 0.5) for name in names))

    assert choose(measured("tfidf_distance", "my_metric")) == ("math/my_metric", "math/tfidf_distance")
    assert choose(measured("my_metric")) == ("math/my_metric",)
    assert choose(measured("distinct_2")) == ("math/distinct_2",)  # nothing else was measured
