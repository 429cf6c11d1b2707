"""The three questions where there is little to go by: few texts, several rewrites of one, attributes that fail."""

from __future__ import annotations

import json
import math
import re
import warnings

import numpy as np
import pytest

import divmon
from divmon.cli import main
from divmon.errors import ConfigError, ProbeError
from divmon.yardsticks import read_references

TEXT = (
    "The cat sat. The dog sat. A bird sang to the cat. The cat ran. A dog ran. "
    "The bird flew. The dog barked. A cat slept. The bird slept. The dog slept."
)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_the_spread_does_not_depend_on_how_many_rewrites_a_text_has():
    rng = np.random.default_rng(3)
    own, made = rng.normal(size=12), rng.normal(size=(12, 4))
    written = zip(own.tolist(), made.tolist(), strict=True)
    rows = [{"original": repr(x), "rewrites": [repr(y) for y in row]} for x, row in written]
    found = divmon.voice(rows, {"number": float}).attributes[0]
    each = np.array([np.var(rng.choice(4, size=(20_000, 12)).choose(made.T), axis=1, ddof=1)]).mean()  # one is drawn
    assert found.n == 12
    assert found.spread == pytest.approx(math.sqrt(each) / own.std(ddof=1), rel=0.01)
    exact = np.var(made.mean(axis=1), ddof=1) + made.var(axis=1).mean()
    assert found.spread == pytest.approx(math.sqrt(exact) / own.std(ddof=1), abs=1e-12)
    assert found.spread_interval[0] < found.spread < found.spread_interval[1]
    assert found.shift == pytest.approx(made.mean() - own.mean(), abs=1e-12)


def test_fewer_than_five_have_no_intervals(tmp_path, capsys):
    rows = [{"original": "a" * n, "rewrite": "b" * (2 * n)} for n in range(2, 7)]
    for n, known in ((4, False), (5, True)):
        found = divmon.voice(rows[:n], {"length": len})
        assert found.attributes[0].spread == found.spread == pytest.approx(2.0)
        ends = np.array([*found.attributes[0].shift_interval, *found.spread_interval])
        assert np.isfinite(ends).all() == known
    people = [{"text": TEXT + " and so on" * i} for i in range(6)]
    references = write(tmp_path / "people.jsonl", people)
    for n, known in ((1, False), (5, True)):
        found = divmon.human_gap([row["text"] for row in people[:n]], str(references))
        assert np.isfinite(found.distance)
        assert math.isfinite(found.distance_low) == known
        assert (np.isfinite(found.low) == (np.isfinite(found.gaps) & known)).all()
    one = write(tmp_path / "one.jsonl", people[:1])
    assert main(["human", str(one), "--references", str(references)]) == 0
    assert "no intervals" in capsys.readouterr().out


def test_an_attribute_that_fails_is_named_and_not_a_traceback(capsys, tmp_path):
    def worst(text):
        raise KeyError("x" * 500)

    rows = [{"original": "a", "rewrite": "b"}]
    with pytest.raises(ConfigError, match=r"the attribute 'worst' failed on the text 'a': KeyError: '?x{70,80}\.$"):
        divmon.voice(rows, [worst])
    path = write(tmp_path / "rows.jsonl", rows)
    assert main(["voice", str(path), "--attribute", "builtins:str"]) == 2
    assert "the attribute 'str' returned 'a' for a text, not a number." in capsys.readouterr().err
    assert main(["voice", str(path)]) == 0
    assert "not measured: it needs three writers" in capsys.readouterr().out


def test_one_completion_of_each_model_is_enough_to_compare_models(tmp_path, capsys):
    rows = [{"prompt": p, "model": m, "completion": f"{m} says {p}"} for p in "abc" for m in ("x", "y")]
    path = write(tmp_path / "rows.jsonl", rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["hivemind", str(path), "--nearest", "1000"]) == 0
    said = capsys.readouterr().out
    assert "the source of the 1 nearest neighbours" in said  # there are no more
    assert re.search(r"^x +- +0\.\d+$", said, re.MULTILINE)


def test_a_field_that_is_there_is_not_called_missing():
    with pytest.raises(ProbeError, match="line 1: 'text' must be a text that is not empty, not 'None'"):
        read_references([{"text": None}])
    with pytest.raises(ProbeError, match="line 2: neither a 'text' nor a 'prompt' and 'completions'"):
        divmon.human_gap([{"text": "fine"}, {"txt": "?"}])
