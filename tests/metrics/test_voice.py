"""Voice of rewrites: published preference shares, known spreads, brute force over draws."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.attributes import ATTRIBUTES, ENGLISH, attributes
from divmon.metrics.base import PerPrompt
from divmon.metrics.voice import FLOOR, preference_shares, voice
from divmon.probes import ProbeSet
from divmon.records import Probe, SampleBatch

TABLE = Path(__file__).parents[2].parent / "shared" / "oracles" / "tables" / "persona.json"
SENTENCES = "I think it's maybe a very considerable MATTER of taste, isn't it? No! We might go on. And so forth"
WORDS = SENTENCES.split()


def texts(rng, n, *, sizes=(30, 60)):
    return [" ".join(rng.choice(WORDS, rng.integers(*sizes))) for _ in range(n)]


def batch(references, rows):
    probes = tuple(Probe(str(i), "?", domain="rewrite", reference=text) for i, text in enumerate(references))
    return SampleBatch(0, probes, tuple(map(tuple, rows)))


def value(name, one):
    result = evaluate(METRICS[name], MetricContext(one))
    return float(result.combine(result.parts))


def persona():
    if not TABLE.exists():
        pytest.skip("the published table is not here")
    return json.loads(TABLE.read_text())


def test_preferences_of_the_study():
    table = persona()
    shares = preference_shares({name: table[name] for name in ("ai", "equal", "own")})
    assert [round(100 * share, 1) for share in shares.values()] == table["percent"] == [63.0, 21.3, 15.7]
    assert math.isnan(preference_shares({"ai": 0})["ai"])


def test_known_spreads_come_back():
    """Scorers with the published ratios of spread, on samples standardised to have them exactly."""
    ratios = persona()["spread_ratio_sd_ai_over_sd_writer"]
    rng = np.random.default_rng(0)
    n = 400
    own, model = [f"own {i}" for i in range(n)], [f"model {i}" for i in range(n)]
    score = {}
    for name, ratio in ratios.items():
        x, noise = rng.normal(size=(2, n))
        y = 0.8 * x + 0.6 * noise
        x, y = ((v - v.mean()) / v.std(ddof=1) for v in (x, y))
        score[name] = dict(zip(own + model, [*(50 + 10 * x), *(58 + 10 * ratio * y)], strict=True))
    scorers = {name: lambda found, name=name: np.array([score[name][text] for text in found]) for name in ratios}
    result = voice(own, model, scorers=scorers, acceptance={"ai": 0.63})
    found = {record.name: record for record in result.attributes}
    for name, ratio in ratios.items():
        record = found[name]
        assert record.spread == pytest.approx(ratio, abs=1e-9)
        assert record.spread_interval[0] < ratio < record.spread_interval[1]
        assert (record.spread_interval[1] < 1) == (ratio < 0.9)
        assert (record.shift, record.shift_sd) == (pytest.approx(8, abs=1e-9), pytest.approx(0.8, abs=1e-9))
        assert record.shift_interval[0] < 8 < record.shift_interval[1]
        assert record.n == n
    assert result.acceptance == {"ai": 0.63}


def test_each_attribute_equals_numpy():
    rng = np.random.default_rng(1)
    own, model = texts(rng, 25), texts(rng, 25, sizes=(20, 40))
    a, b = attributes(own), attributes(model)
    result = voice(own, model, n_boot=100)
    ratios = []
    for i, record in enumerate(result.attributes):
        both = np.isfinite(a[:, i]) & np.isfinite(b[:, i])
        x, y = a[both, i], b[both, i]
        assert record.n == both.sum()
        assert record.shift == pytest.approx(y.mean() - x.mean(), abs=1e-9)
        assert record.spread == pytest.approx(y.std(ddof=1) / x.std(ddof=1), abs=1e-9)
        assert record.shift_sd == pytest.approx((y.mean() - x.mean()) / x.std(ddof=1), abs=1e-9)
        ratios.append(max(FLOOR, record.spread))
    assert result.spread == pytest.approx(math.exp(np.mean(np.log(ratios))), abs=1e-9)
    assert result.spread_interval[0] <= result.spread <= result.spread_interval[1]


def test_the_spread_is_that_expected_when_one_completion_is_drawn_for_each_writer():
    rng = np.random.default_rng(2)
    own, rows = texts(rng, 4), [texts(rng, 3) for _ in range(4)]
    found = [attributes(row) for row in rows]
    draws = [
        np.stack([found[p][k] for p, k in enumerate(pick)]).var(axis=0, ddof=1)
        for pick in itertools.product(range(3), repeat=4)
    ]
    ratios = np.sqrt(np.mean(draws, axis=0)) / attributes(own).std(axis=0, ddof=1)
    result = evaluate(METRICS["voice_spread"], MetricContext(batch(own, rows)))
    details = result.details(result.parts)["spread"]
    known = dict(zip(ATTRIBUTES, ratios, strict=True))
    np.testing.assert_allclose([details[name] for name in details], [known[name] for name in details], atol=1e-9)
    assert len(details) >= 9
    expected = math.exp(np.mean([math.log(max(FLOOR, known[name])) for name in details]))
    assert float(result.combine(result.parts)) == pytest.approx(expected, abs=1e-9)


def test_shift_is_the_mean_of_the_absolute_shifts():
    rng = np.random.default_rng(3)
    own, rows = texts(rng, 9), [texts(rng, 2, sizes=(30, 31)) for _ in range(9)]
    result = evaluate(METRICS["voice_shift"], MetricContext(batch(own, rows)))
    details = result.details(result.parts)["shift_sd"]
    assert float(result.combine(result.parts)) == pytest.approx(np.mean(np.abs(list(details.values()))), abs=1e-9)


def test_one_voice_for_all_is_the_floor_and_no_rewrite_is_one():
    own = [probe.reference for probe in ProbeSet.of("rewrite")]
    same, kept = batch(own, [[own[0]] * 2] * len(own)), batch(own, [[text] * 2 for text in own])
    assert value("voice_spread", same) == pytest.approx(FLOOR, abs=1e-12)
    assert value("voice_spread", kept) == pytest.approx(1, abs=1e-9)
    assert value("voice_shift", kept) == pytest.approx(0, abs=1e-9)
    plain = batch(own, [[f"Dear all, {' '.join(text.split()[:12]).lower()}. Kind regards."] for text in own])
    assert value("voice_spread", plain) < 0.9


def test_attributes_by_hand():
    text = "I'd say MAYBE. Really?! The extraordinary end, they’re gone!"
    found = dict(zip(ATTRIBUTES, attributes([text])[0], strict=True))
    assert found == {
        "sentence_length": pytest.approx(9 / 3),
        "word_length": pytest.approx((3 + 3 + 5 + 6 + 3 + 13 + 3 + 7 + 4) / 9),
        "variety": pytest.approx(math.nan, nan_ok=True),
        "long_words": pytest.approx(2 / 9),
        "punctuation": pytest.approx(7 / 9),
        "capitals": pytest.approx(1 / 9),
        "exclamations": pytest.approx(2 / 3),
        "questions": pytest.approx(1 / 3),
        "first_person": pytest.approx(1 / 9),
        "contractions": pytest.approx(2 / 9),
        "hedges": pytest.approx(1 / 9),
    }
    assert set(ATTRIBUTES) >= ENGLISH


@pytest.mark.parametrize("text", ["", "...", "\ud800", "a" * 100_000, "!" * 100_000, "!a" * 50_000, "'" * 9])
def test_odd_texts_raise_nothing(text):
    assert attributes([text]).shape == (1, len(ATTRIBUTES))
    result = voice([text] * 4, [text] * 4, n_boot=10)
    assert math.isnan(result.spread)


def test_what_is_missing_says_why():
    for one in (batch([None, None], [["a"], ["b"]]), batch([], [])):
        result = evaluate(METRICS["voice_spread"], MetricContext(one))
        assert isinstance(result, PerPrompt)
        assert all("no probe has a reference" in reason for reason in result.reasons)
    assert math.isnan(value("voice_spread", batch(["same text"] * 5, [["a b c"]] * 5)))
    assert math.isnan(value("voice_spread", batch(["one", "two more"], [["a"], ["b"]])))
    with pytest.raises(ValueError, match="one rewrite"):
        voice(["a"], [])
    with pytest.raises(ValueError, match="scorer 'x'"):
        voice(["a"], ["b"], scorers={"x": lambda found: np.zeros(3)})
    assert voice([], []).attributes[0].n == 0
