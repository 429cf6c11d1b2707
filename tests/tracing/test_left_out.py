"""A trace of which little is left, and shares of losses that are none."""

from __future__ import annotations

import pytest

import divmon
from divmon.errors import ConfigError

SMALL = {"metrics": ["tfidf_distance"], "k": 2}


def drawn(texts):
    """Opens checkpoints that say what stands in `texts`: checkpoint to a function of a prompt's number."""

    def draw(checkpoint):
        if checkpoint.name not in texts:
            raise OSError("it is not there")

        def sample(probes, *, step):
            rows = tuple(tuple(texts[checkpoint.name](int(probe.id[1:]))) for probe in probes)
            return divmon.SampleBatch(step, probes.probes, rows)

        return sample

    return draw


def probes(n):
    return [{"id": f"p{i}", "prompt": f"p{i}", "domain": "ab"[i % 2]} for i in range(n)]


def test_where_the_base_failed_no_other_is_called_the_base(tmp_path):
    texts = {"sft": lambda i: [f"one {i}", f"two {i}"]}
    found = divmon.trace({"base": "b", "sft": "s"}, probes(6), out=tmp_path, draw=drawn(texts), **SMALL)
    assert "Percentages are of the base (base);" in found.page()
    assert "Percentages are of the base (sft);" not in found.page()
    assert found.table().startswith("No stage can be named\n  The base failed.")
    assert "By domain" not in found.table()


def test_where_only_the_base_is_left_no_stage_is_judged(tmp_path):
    texts = {"base": lambda i: [f"one {i}", f"two {i}"]}
    found = divmon.trace({"base": "b", "sft": "s"}, probes(6), out=tmp_path, draw=drawn(texts), **SMALL)
    assert found.table().startswith("No stage can be named\n  Only the base was measured: all other")
    assert "clearly" not in found.table()


@pytest.mark.parametrize(("good", "shown"), [(1, False), (12, True)])
def test_narrowing_is_shown_where_a_loss_was_and_prompts_enough_to_tell(good, shown, tmp_path):
    """The first `good` prompts have correct completions; of one prompt nothing is said."""
    texts = {
        "base": lambda i: ["alpha beta gamma", "delta epsilon", f"zeta {i}", "eta theta"],
        "sft": lambda i: ["alpha beta gamma", "alpha beta delta", f"alpha beta {i}", "alpha beta"],
    }
    found = divmon.trace(
        {"base": "b", "sft": "s"}, probes(12), out=tmp_path, draw=drawn(texts), metrics=["tfidf_distance"], k=4,
        quality=lambda probe, text: float(int(probe.id[1:]) < good),
    )  # fmt: skip
    split = found.split("sft")
    assert split.n == good
    assert split.narrowing > 0
    [row] = [line for line in found.table().splitlines() if line.split()[:2] == ["sft", "base"]]
    assert row.endswith("%") == shown
    assert ("narrowing; the rest" in found.table()) == shown


def test_narrowing_is_no_share_of_a_rise(tmp_path):
    """Over all prompts diversity rose; it fell on the few that have correct completions."""
    wide, narrow = ["alpha beta gamma", "delta epsilon", "zeta eta", "theta iota"], ["alpha", "alpha", "alpha", "alpha"]
    texts = {"base": lambda i: wide if i < 6 else narrow, "sft": lambda i: narrow if i < 6 else wide}
    found = divmon.trace(
        {"base": "b", "sft": "s"}, probes(24), out=tmp_path, draw=drawn(texts), metrics=["tfidf_distance"], k=4,
        quality=lambda probe, text: float(int(probe.id[1:]) < 6),
    )  # fmt: skip
    assert found.split("sft").narrowing == pytest.approx(1.0)
    assert found.value("sft", "tfidf_distance", "a") > found.value("base", "tfidf_distance", "a")
    assert "100%" not in found.table()


def test_a_type_that_is_none_is_said_before_anything_is_loaded(tmp_path):
    with pytest.raises(
        ConfigError, match="dtype must be 'auto' or one of PyTorch's, such as 'bfloat16', not 'float99'"
    ):
        divmon.trace({"a": "a", "b": "b"}, probes(2), out=tmp_path / "out", dtype="float99")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_is_not_called_one_without_a_tokenizer(tmp_path, checkpoints):
    lineage = {"base": checkpoints["base"], "gone": "nowhere"}
    found = divmon.trace(lineage, probes(2), out=tmp_path, max_new_tokens=2, **SMALL)
    assert found.checkpoints[1].failure.startswith("nowhere is neither a folder nor a model")
