"""When one format took over."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divmon.history import Evaluation, History
from divmon.records import Measurement
from divmon.report.dominance import Passage, sentence, steps_to_dominance, takeover
from divmon.report.page import render


@pytest.mark.parametrize(
    ("shares", "first", "lasting"),
    [
        ([0.1, 0.2, 0.3], None, None),
        ([0.6, 0.7, 0.8], 0, 0),
        ([0.1, 0.5, 0.9], 10, 10),
        ([0.1, 0.6, 0.4, 0.9, 0.8], 10, 30),
        ([0.1, 0.6, 0.4], 10, None),
        ([0.1, 0.6, math.nan, 0.7], 10, 10),
        ([0.1, 0.6, math.nan], 10, 10),
        ([math.nan, math.nan], None, None),
        ([], None, None),
    ],
)
def test_passages_by_hand(shares, first, lasting):
    found = steps_to_dominance([10 * i for i in range(len(shares))], shares, levels=(0.5,))
    assert found == {0.5: Passage(first, lasting)}


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0.05, 1))
def test_passages_by_definition(shares, level):
    steps = np.arange(len(shares)) * 3
    found = steps_to_dominance(steps, shares, levels=(level,))[level]
    firsts = [s for s, x in zip(steps, shares, strict=True) if x >= level]
    lasting = [s for i, s in enumerate(steps) if all(x >= level for x in shares[i:])]
    assert found == Passage(firsts[0] if firsts else None, lasting[0] if lasting else None)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="one length"):
        steps_to_dominance([0, 1], [0.5])


def test_takeover_follows_the_format_that_wins(tmp_path):
    history = History.create(tmp_path / "run", probes=())
    rows = [{"text": 0.9, "code": 0.1}, {"text": 0.45, "code": 0.55}, None, {"code": 0.96, "text": 0.04}]
    for step, shares in enumerate(rows):
        value, reason = (max(shares.values()), None) if shares else (math.nan, "the sampler failed")
        m = Measurement(step, "d", "format_dominance", value, details={"shares": shares or {}}, reason=reason)
        history.append(Evaluation(step, (m,)), None)
    found = takeover(History.read(tmp_path / "run"), "d")
    assert found.label == "code"
    assert found.passages == {0.5: Passage(1, 1), 0.8: Passage(3, 3), 0.95: Passage(3, 3)}
    assert takeover(history, "elsewhere").label is None
    assert takeover(history, "elsewhere").passages[0.5] == Passage()


def test_the_sentence_of_a_report(tmp_path):
    history = History.create(tmp_path / "run", probes=())
    for step, share in enumerate([0.4, 0.6, 0.7, 0.97]):
        details = {"shares": {"<code>": share, "text": 1 - share}}
        history.append(Evaluation(step, (Measurement(step, "d", "format_dominance", share, details=details),)), None)
    said = "<code>: at 50 % or more from step 1 on, at 80 % or more from step 3 on and at 95 % or more from step 3 on."
    assert sentence(history, "d") == said
    assert sentence(history, "elsewhere") == ""
    page = render(history)
    assert "&lt;code&gt;: at 50 % or more from step 1 on" in page


def test_no_sentence_where_a_format_ruled_from_the_start(tmp_path):
    history = History.create(tmp_path / "run", probes=())
    for step, shares in enumerate(({"a": 0.96}, {"a": 0.97}, {"a": "damaged"}, [])):
        m = Measurement(step, "d", "format_dominance", 0.96, details={"shares": shares})
        history.append(Evaluation(step, (m,)), None)
    assert sentence(history, "d") == ""
