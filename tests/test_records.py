"""Law 5: every record survives a JSON round trip, NaN included. And what a batch refuses and says about itself."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divmon.history import Evaluation, _evaluation_from_json
from divmon.plain import (
    batch_from_rows,
    batch_rows,
    event_from_json,
    float_from_json,
    measurement_from_json,
    probe_from_json,
    to_json,
    verdict_from_json,
)
from divmon.probes import ProbeSet
from divmon.records import (
    OVERALL,
    Action,
    AlarmEvent,
    Decoding,
    Measurement,
    Observation,
    Probe,
    SampleBatch,
    Verdict,
    as_messages,
)

# JSON cannot tell two escaped halves of a pair from the character they make, so halves stand alone here.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["", "\ud800", "a\udfffb", "\x00", "\u2028\u2029", "\u202eabc", '"\\\n', "é😀"]
)
numbers = st.floats(allow_nan=True, allow_infinity=True)
plain = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | texts
columns = st.dictionaries(
    texts, st.recursive(plain, lambda inner: st.lists(inner, max_size=2), max_leaves=3), max_size=3
)
measurements = st.builds(
    Measurement,
    step=st.integers(-1, 10**9),
    domain=texts,
    metric=texts,
    value=numbers,
    low=numbers,
    high=numbers,
    n=st.integers(0, 99),
    signature=texts,
    values=st.lists(numbers, max_size=4).map(tuple),
    reason=st.none() | texts,
    details=columns,
)
events = st.builds(
    AlarmEvent,
    step=st.integers(0, 99),
    alarm=texts,
    domain=texts,
    metric=texts,
    state=st.sampled_from(["pending", "firing", "resolved", "inactive"]),
    severity=st.sampled_from(["info", "warning", "critical"]),
    value=numbers,
    baseline=numbers,
    actions=st.lists(texts, max_size=3).map(tuple),
    message=texts,
    details=columns,
)
verdicts = st.builds(
    Verdict,
    step=st.integers(0, 99),
    alarm=texts,
    domain=texts,
    tested=texts,
    outcome=st.sampled_from(["confirmed", "refuted", "unknown"]),
    reason=st.none() | texts,
    attempt=st.integers(0, 9),
    **dict.fromkeys(("level", "p", "estimate", "low", "high", "spent", "left"), numbers),
    **dict.fromkeys(("n", "informative", "completions", "draws"), st.integers(0, 99)),
    exact=st.booleans(),
    details=columns,
)
messages = st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), min_size=1, max_size=3).map(tuple)
probes = st.builds(
    Probe,
    id=texts,
    prompt=texts | messages,
    domain=texts,
    gold=st.none() | texts,
    reference=st.none() | texts,
    difficulty=st.none() | st.integers(1, 5),
    token_ids=st.none() | st.lists(st.integers(0, 9), max_size=4).map(tuple),
    columns=columns,
)


few = settings(max_examples=50, deadline=None)


def there_and_back(record):
    text = json.dumps(to_json(record), allow_nan=False)
    assert text.isascii()
    return json.loads(text)


def same(a, b):
    """Equal, where NaN equals NaN, to the bit and the type."""
    return repr(a) == repr(b)


@given(measurements)
@few
def test_measurements(record):
    assert same(measurement_from_json(there_and_back(record)), record)


@given(events)
@few
def test_events(record):
    assert same(event_from_json(there_and_back(record)), record)


@given(verdicts)
@few
def test_verdicts(record):
    assert same(verdict_from_json(there_and_back(record)), record)


def test_an_event_of_an_older_history_is_still_read():
    row = there_and_back(AlarmEvent(4, "a", "x", "m", "firing", "warning", 0.5, details={"p": 0.1}))
    del row["details"]
    assert event_from_json(row) == AlarmEvent(4, "a", "x", "m", "firing", "warning", 0.5)
    assert _evaluation_from_json({"step": 4, "measurements": []}).verdicts == ()


@given(probes)
@few
def test_probes(record):
    assert same(probe_from_json(there_and_back(record)), record)


@given(st.lists(probes, min_size=1, max_size=3, unique_by=lambda probe: probe.id))
@few
def test_the_fingerprint_of_a_probe_set_survives_too(found):
    found = [replace(probe, domain=probe.domain if probe.domain != OVERALL else "x") for probe in found]
    again = [probe_from_json(there_and_back(probe)) for probe in found]
    assert ProbeSet(tuple(again)).fingerprint == ProbeSet(tuple(found)).fingerprint


@given(numbers, numbers, st.integers(1, 999), st.integers())
def test_decoding_and_actions(temperature, top_p, cap, key):
    finite = Decoding(*(v if math.isfinite(v) else 1.0 for v in (temperature, top_p)), cap, key)
    assert Decoding(**there_and_back(finite)) == finite
    action = Action("stop", "a\ud800", "because\u2028")
    assert Action(**there_and_back(action)) == action


@given(
    st.lists(measurements, max_size=2),
    st.lists(events, max_size=2),
    st.dictionaries(texts, numbers, max_size=3),
    st.lists(verdicts, max_size=2),
)
@few
def test_evaluations(found, told, health, answers):
    record = Evaluation(7, tuple(found), tuple(told), health, tuple(answers))
    assert same(_evaluation_from_json(there_and_back(record)), record)


@st.composite
def batches(draw):
    sizes = draw(st.lists(st.integers(0, 3), max_size=3))

    def grid(values):
        return tuple(tuple(draw(values) for _ in range(k)) for k in sizes)

    def maybe(values):
        return grid(values) if draw(st.booleans()) else None

    vectors = st.lists(numbers, max_size=3).map(np.array)
    return SampleBatch(
        step=draw(st.integers(0, 99)),
        probes=tuple(replace(draw(probes), id=str(i)) for i in range(len(sizes))),
        texts=grid(texts),
        token_ids=maybe(st.lists(st.integers(0, 9), max_size=3).map(tuple)),
        finished=maybe(st.booleans()),
        logprobs=maybe(vectors),
        entropies=maybe(vectors),
        rewards=maybe(numbers),
        decoding=draw(st.none() | st.just(Decoding(0.7, 0.9, 5, 3))),
        source=draw(st.sampled_from(["probe", "rollout", "file"])),
        fingerprint="abc",
    )


@given(batches())
@few
def test_batches(batch):
    rows = [there_and_back(row) for row in batch_rows(batch)]
    again = batch_from_rows(rows, batch.probes)
    names = ("logprobs", "entropies") if batch.probes else ("token_ids", "finished", "logprobs", "entropies", "rewards")
    assert same(replace(again, **dict.fromkeys(names)), replace(batch, **dict.fromkeys(names)))
    for name in names if batch.probes else ():
        here, there = getattr(batch, name), getattr(again, name)
        assert (here is None) == (there is None)
        for a, b in zip((v for row in here or () for v in row), (v for row in there or () for v in row), strict=True):
            assert b.dtype == float
            assert np.array_equal(a, b, equal_nan=True)


def test_an_observation_is_json_too():
    batch = SampleBatch(3, (Probe("a", "?"),), (("x", "y"),), logprobs=((np.array([-1.0]), np.array([math.nan])),))
    record = Observation(3, (Measurement(3, "x", "m", math.nan, reason="why"),), health={"a": math.inf}, batch=batch)
    row = there_and_back(record)
    assert row["measurements"][0]["value"] is None
    assert row["health"] == {"a": "inf"}
    assert row["batch"]["logprobs"] == [[[-1.0], [None]]]
    assert row["baseline"] is None


def test_what_numpy_makes_becomes_plain():
    value = {1: np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": np.array([[1.0, np.nan]]), "e": (1, {2})}
    assert json.dumps(to_json(value)) == '{"1": 0.5, "b": 3, "c": true, "d": [[1.0, null]], "e": [1, "{2}"]}'
    assert to_json(np.float64("-inf")) == "-inf"
    assert to_json(True) is True


@pytest.mark.parametrize("value", [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan])
def test_floats_come_back_to_the_bit(value):
    back = float_from_json(there_and_back({"v": value})["v"])
    assert np.float64(back).tobytes() == np.float64(value).tobytes() or (math.isnan(value) and math.isnan(back))


def test_details_come_back_as_plain_json():
    """Their floats are for people: NaN becomes null there, and tuples become lists."""
    record = Measurement(0, "x", "m", 1.0, details={"shares": {"a": math.nan, "b": 1.0}, "levels": ("1", "2")})
    back = measurement_from_json(there_and_back(record))
    assert back.details == {"shares": {"a": None, "b": 1.0}, "levels": ["1", "2"]}


def test_what_a_newer_version_adds_is_ignored():
    row = {**there_and_back(Measurement(0, "x", "m", 1.0)), "median": 3}
    assert measurement_from_json(row) == Measurement(0, "x", "m", 1.0)
    event = AlarmEvent(0, "a", "x", "m", "firing", "warning", 1.0)
    assert same(event_from_json({**there_and_back(event), "cause": "?"}), event)


TWO = (Probe("a", "?", domain="x"), Probe("b", "?", domain="y"))


def test_a_batch_has_one_row_for_each_probe():
    with pytest.raises(ValueError, match="2 probes but 1 rows of completions"):
        SampleBatch(0, TWO, (("a",),))


@pytest.mark.parametrize("name", ["token_ids", "finished", "logprobs", "entropies", "rewards"])
@pytest.mark.parametrize("rows", [((1, 2),), ((1, 2), (1,)), ((1,), (1, 2)), ((), ())])
def test_every_column_has_the_shape_of_the_texts(name, rows):
    with pytest.raises(ValueError, match=f"{name} does not have the shape of texts"):
        SampleBatch(0, TWO, (("a", "b"), ("c", "d")), **{name: rows})


def test_what_a_batch_says_about_itself():
    batch = SampleBatch(0, (*TWO, Probe("c", "?", domain="x")), (("a", "b"), ("c",), ("d", "e", "f")))
    assert batch.k == 1
    assert batch.domains == ("x", "y")
    assert [batch.rows(d).tolist() for d in ("x", "y", OVERALL, "z")] == [[0, 2], [1], [0, 1, 2], []]
    assert batch.rows("z").dtype == np.intp
    assert SampleBatch(0, (), ()).k == 0


def test_signatures_tell_apart_what_must_not_be_compared():
    batch = SampleBatch(0, TWO, (("a", "b"), ("c", "d")), decoding=Decoding(), fingerprint="f00")
    assert batch.signature == "k:2|T:1|p:1|len:128|key:0|probe|probes:f00"
    assert replace(batch, step=9).signature == batch.signature
    others = [
        replace(batch, texts=(("a",), ("c", "d"))),
        replace(batch, texts=(("a",), ("c",))),
        *(replace(batch, decoding=d) for d in (None, Decoding(0.7), Decoding(top_p=0.9), Decoding(key=1))),
        replace(batch, decoding=Decoding(max_new_tokens=64)),
        replace(batch, source="file"),
        replace(batch, fingerprint="f01"),
    ]
    assert others[0].signature.startswith("k:1-2|")
    assert others[2].signature == "k:2|decoding:unknown|probe|probes:f00"
    assert len({batch.signature, *(other.signature for other in others)}) == len(others) + 1
    assert SampleBatch(0, (), ()).signature.startswith("k:0|")


def test_a_prompt_as_a_person_reads_it():
    chat = as_messages([{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}, {"role": "tool"}])
    assert Probe("a", "hi\nyou").text == "hi\nyou"
    assert Probe("a", chat).text == "hi\n\n"


def test_the_first_domain_that_has_a_metric_is_got():
    observation = Observation(0, (Measurement(0, "x", "m", 1.0), Measurement(0, "y", "m", 2.0)))
    assert observation.get("m").value == 1.0
    assert observation.get("m", "y").value == 2.0
    assert observation.get("m", "z") is None
    assert observation.measurements[0].key == "x/m"
