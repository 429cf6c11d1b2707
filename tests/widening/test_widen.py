"""Widening: equal draws and one gate for all arms, gains against independent arithmetic, faults, a real model."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

import divmon
from divmon.cli import main
from divmon.errors import DivmonError, SamplingError
from divmon.mitigations.resample import MODES
from divmon.records import Probe
from divmon.resampling.base import Attempt
from divmon.resampling.filters import distance, normalised

PLACES = ["moon", "reef", "moor", "market", "attic", "glacier"]
ROWS = [
    {
        "prompt": f"tale {i}",
        "id": f"t{i}",
        "completions": ["red fox eats hen at den"] * 3 + ["blue crab digs"] * (i % 2),
    }
    for i in range(8)
]


class Teller:
    """Writes by what the prompt asks for and by its key alone."""

    name = "teller"

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []

    def write(self, prompts: Any, *, temperature: float, keys: Any) -> list[str]:
        self.asked += [(prompt, temperature) for prompt in prompts]
        return [self.tale(prompt, random.Random(key)) for prompt, key in zip(prompts, keys, strict=True)]

    def tale(self, prompt: str, rng: random.Random) -> str:
        place = rng.choice(PLACES)
        if "far apart" in prompt:
            return f"{rng.choice(['owl', 'crab', 'whale'])} sings of the {place}"
        if "edge" in prompt:
            return f"red fox sleeps {rng.choice(['under', 'behind', 'inside'])} {place}"
        if "take for granted" in prompt:
            return f"nobody {rng.choice(['weeps backwards', 'outlives time'])} near {place}"
        return rng.choice(["red fox eats hen at den", "red fox eats hen at den", f"red hen at {place}"])

    def logprob(self, prompts: Any, texts: Any) -> np.ndarray:
        return np.full(len(texts), -1.0)


def critic(request: Any) -> str:
    return "All of them have a fox."


def feasible(probe: Probe, text: str) -> bool:
    return "weeps" not in text


def quality(probe: Probe, text: str) -> float:
    return min(1.0, 0.6 + 0.01 * len(text.split()))


def widen(writer: Any = None, **more: Any) -> Any:
    return divmon.widen(
        more.pop("rows", ROWS), writer or Teller(), more.pop("critic", critic),
        **{"quality": quality, "feasible": feasible, **more},
    )  # fmt: skip


def test_every_arm_draws_as_many_at_one_temperature() -> None:
    teller, asked = Teller(), []
    found = widen(teller, critic=lambda request: asked.append(request) or "All alike.", temperature=0.9)
    bare = Counter(prompt for prompt, _ in teller.asked if prompt in {row["prompt"] for row in ROWS})
    told = Counter(prompt.split("\n")[0] for prompt, _ in teller.asked if prompt not in bare)
    said = Counter(request.attempt.probe.text for request in asked)
    for row in ROWS:
        assert bare[row["prompt"]] * len(MODES) == told[row["prompt"]] + said[row["prompt"]] > 0
    assert {temperature for _, temperature in teller.asked} == {0.9}
    budgets = {arm.budget for arm in found.arms.values()}
    assert budgets == {arm.drawn for arm in found.arms.values()} == {bare.total()}
    assert found.notes == ()


@pytest.mark.parametrize("options", [{"critiques": 1}, {"refinements": 1}, {"most": 3}, {"critiques": 5, "most": 20}])
def test_draws_stay_equal_under_other_budgets(options: dict[str, int]) -> None:
    found = widen(**options)
    assert len({arm.budget for arm in found.arms.values()}) == 1
    assert all(arm.drawn == arm.budget for arm in found.arms.values())
    assert all(
        arm.texts <= options.get("most", 8) * found.served for name, arm in found.arms.items() if name != "plain"
    )


def test_what_is_accepted_passes_one_gate_for_all_arms() -> None:
    found = widen()
    for name, arm in found.arms.items():
        texts: dict[str, list[str]] = {row["id"]: list(row["completions"]) for row in ROWS}
        for one in arm.accepted:
            assert feasible(one.probe, one.text)
            assert one.quality == quality(one.probe, one.text) >= 0.5
            assert distance(one.text, texts[one.probe.id]) == pytest.approx(one.novelty)
            assert one.novelty >= 0.5
            assert normalised(one.text) not in map(normalised, texts[one.probe.id])
            assert one.candidate.variant == name
            texts[one.probe.id].append(one.text)
    assert found.arms["transformational"].feasible < 1 == found.arms["exploratory"].feasible
    assert found.arms["transformational"].counts["not_feasible"] > 0


def vendi(texts: list[str], reference: TfidfVectorizer, unseen: float) -> float:
    """By eigenvalues of cosines of scikit-learn's counts under frozen document frequencies."""
    counter = TfidfVectorizer(analyzer="char", ngram_range=(3, 5), use_idf=False, norm=None)
    rows = counter.fit_transform(texts).toarray()
    idf = [reference.idf_[reference.vocabulary_[g]] if g in reference.vocabulary_ else unseen
           for g in counter.get_feature_names_out()]  # fmt: skip
    rows = rows * np.array(idf)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    weights = np.linalg.eigvalsh(rows @ rows.T / len(rows))
    weights = weights[weights > 1e-12]
    return float(np.exp(-np.sum(weights * np.log(weights))))


def test_gains_are_those_of_the_pools_by_independent_arithmetic() -> None:
    found = widen()
    everything = [text for row in ROWS for text in row["completions"]]
    reference = TfidfVectorizer(analyzer="char", ngram_range=(3, 5)).fit(everything)
    unseen = np.log(1 + len(everything)) + 1

    def side(name: str) -> tuple[np.ndarray, np.ndarray]:
        added = found.arms[name].accepted if name else ()
        pools = [row["completions"] + [one.text for one in added if one.probe.id == row["id"]] for row in ROWS]
        values = [vendi(pool, reference, unseen) for pool in pools]
        good = [np.mean([quality(None, text) for text in pool]) for pool in pools]
        return np.array(values), np.array(good)

    before, plain = side(""), side("plain")
    for mode in MODES:
        after = side(mode)
        for i, metric in enumerate(("surface_vendi_1", "mean_quality")):
            gain = found.get(mode, metric)
            assert gain.before == pytest.approx(before[i].mean(), abs=1e-9)
            assert gain.plain == pytest.approx(plain[i].mean(), abs=1e-9)
            assert gain.after == pytest.approx(after[i].mean(), abs=1e-9)
            differences = after[i] - plain[i]
            draws = np.random.default_rng(20_26).integers(0, len(ROWS), size=(1000, len(ROWS)))
            low, high = np.quantile(differences[draws].mean(axis=1), [0.025, 0.975])
            assert (gain.low, gain.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
            assert gain.n == len(ROWS)


def test_kinds_are_told_for_what_was_there_and_for_what_came() -> None:
    seen: list[tuple[str, int]] = []

    def thinking(prompt: str, text: str, others: Any) -> str | None:
        seen.append((text, len(others)))
        return "exploratory" if "sleeps" in text else "nonsense" if "nobody" in text else None

    found = widen(thinking=thinking)
    sizes = {len(row["completions"]) for row in ROWS}
    assert {n for text, n in seen if text == "blue crab digs"} == {max(sizes) - 1}  # against the others
    assert {n for text, n in seen if "sleeps" in text} == sizes  # against all that was there
    assert found.thinking["none"] == found.arms["combinational"].thinking["none"] == 1
    assert found.arms["exploratory"].thinking["exploratory"] == 1
    assert found.arms["transformational"].thinking["unknown"] == 1


def test_equal_keys_give_equal_results_and_others_do_not() -> None:
    first, again, other = widen(key=3), widen(key=3), widen(key=4)
    assert first.to_json() == again.to_json() != other.to_json()
    assert json.loads(json.dumps(first.to_json())) == first.to_json()


def test_attempts_batches_rows_and_files_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    batch = divmon.read_completions(path)
    tries = [Attempt(probe, text) for probe, row in zip(batch.probes, batch.texts, strict=True) for text in row]
    tables = {widen(rows=rows).table() for rows in (ROWS, path, str(path), batch, tries)}
    assert len(tables) == 1


def test_prompts_without_a_repeat_take_no_part() -> None:
    rows = [{"prompt": "free", "completions": ["red fox", "blue crab", "one owl"]}, *ROWS[:2]]
    found = widen(rows=rows)
    assert (found.prompts, found.served) == (3, 2)
    assert "no intervals" in found.notes[0]
    none = widen(rows=rows[:1])
    assert none.served == 0
    assert "Nothing was resampled" in none.table()
    assert all(np.isnan(gain.gain) for gain in none.gains)


def test_rewards_of_a_file_do_not_judge_new_completions() -> None:
    rows = [{**row, "rewards": [1.0] * len(row["completions"])} for row in ROWS]
    found = widen(rows=rows, quality=None)
    assert any("cannot" in note for note in found.notes)
    gain = found.get("exploratory", "mean_quality")
    assert np.isnan(gain.gain)
    assert np.isnan(gain.after)


def test_gold_answers_judge_new_completions() -> None:
    found = widen(rows=[{**row, "gold": "red fox eats hen at den"} for row in ROWS], quality=None)
    assert all(one.quality >= 0.5 for arm in found.arms.values() for one in arm.accepted)
    assert found.get("exploratory", "mean_quality").plain > 0


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("gone\x1b[31m")


class Odd(Teller):
    """Writes what no pipeline likes."""

    def tale(self, prompt: str, rng: random.Random) -> str:
        return rng.choice(["\ud800 {question}", "", " \n", "狐" * 50, "x" * 300_000, "\x1b[31mred\x1b[0m", "{x}" * 9])


def test_hostile_text_is_text() -> None:
    rows = [{"prompt": f"{{answer}} {i} \ud800", "completions": ["\x1b[31m", "\x1b[31m", "{others}"]} for i in range(6)]
    found = widen(Odd(), rows=rows, critic=lambda request: "{question}\x1b[2J" * 20)
    assert "\x1b" not in found.table()
    json.dumps(found.to_json())


def test_what_fails_is_told_and_the_rest_goes_on() -> None:
    found = widen(critic=failing)
    assert [len(found.arms[mode].accepted) for mode in MODES] == [0, 0, 0]
    assert len(found.arms["plain"].accepted) > 0
    assert found.get("exploratory", "surface_vendi_1").gain <= 0
    text = found.table()
    assert "draws less than it was given" in text
    assert "\x1b" not in text
    judged = widen(feasible=failing, thinking=failing)
    assert all(not arm.accepted and arm.feasible == 0 for arm in judged.arms.values())
    assert judged.thinking["unknown"] == 1
    assert "gone" in widen(quality=failing).table()


def test_a_writer_that_fails_leaves_no_control() -> None:
    teller = Teller()
    teller.write = failing  # type: ignore[method-assign]
    with pytest.raises(SamplingError, match="no control: gone"):
        widen(teller)
    short = Teller()
    short.write = lambda prompts, **_: ["one"]  # type: ignore[method-assign]
    with pytest.raises(SamplingError, match="1 texts for"):
        widen(short)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"modes": ["combinatorial"]}, "'combinational'"),
        ({"modes": "combinational"}, "list"),
        ({"modes": []}, "list"),
        ({"mode": "exploratory"}, "'modes'"),
        ({"metrics": ["surface_vendy_1"]}, "surface_vendi_1"),
        ({"metrics": ["vendi_1"]}, "encoder"),
        ({"novelty": 2.0}, "novelty"),
        ({"critiques": 0}, "critiques"),
        ({"templates": {"exploratory": "{question}"}}, "lacks"),
        ({"critic": "nobody"}, "critic"),
        ({"feasible": "nobody"}, "critic"),
        ({"quality": 3}, "quality"),
        ({"key": "a"}, "key"),
        ({"rows": []}, "no completions"),
        ({"max_new_tokens": 0, "writer": (None, None)}, "max_new_tokens|model"),
        ({"writer": 7}, "writer"),
        ({"writer": "./no/such/folder"}, "no folder"),
    ],
)
def test_faults_are_named_before_anything_is_drawn(options: dict[str, Any], says: str) -> None:
    teller = Teller()
    with pytest.raises(DivmonError, match=says):
        widen(options.pop("writer", teller), **options)
    assert teller.asked == []


def test_a_file_with_a_fault_names_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "completions": ["x", "x"]}\n{"prompt": "b", "completions": 7}\n', "utf-8")
    with pytest.raises(DivmonError, match=r"line 2.*completions"):
        widen(rows=path)


def test_an_encoder_adds_meaning() -> None:
    axes = {"red": 0, "blue": 1, "owl": 2, "crab": 2, "whale": 2, "nobody": 3}

    def encode(texts: Any) -> np.ndarray:
        return np.eye(4)[[axes[text.split()[0]] for text in texts]]

    found = widen(encoder=encode, modes=["combinational"])
    assert found.get("combinational", "vendi_1").gain > 0 < found.get("combinational", "semantic_distance").gain


@pytest.fixture(scope="module")
def folder(tiny: Any, tmp_path_factory: Any) -> str:
    path = tmp_path_factory.mktemp("model")
    tiny.gpt2().save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


def test_the_command_asks_a_local_model_for_everything(folder: str, tmp_path: Path, capsys: Any) -> None:
    """The model's window is too short for the shipped templates: nothing is written for them, and that is no fault."""
    rows = [{"prompt": f"{i}+1=", "completions": ["the sum is 2", "the sum is 2"], "gold": "2"} for i in range(3)]
    path, out = tmp_path / "c.jsonl", tmp_path / "out.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = ["--mode", "exploratory", "--critiques", "1", "--refinements", "2", "--max-new-tokens", "6"]
    more = ["--logprob=-inf", "--json", str(out), "--good", "0.5", "--key", "1"]
    assert main(["widen", str(path), "--model", folder, *words, *more]) == 0
    found = json.loads(out.read_text("utf-8"))
    assert found["arms"]["plain"]["budget"] == found["arms"]["exploratory"]["budget"] == 9
    assert list(found["arms"]) == ["plain", "exploratory"]
    assert "3 of 3 prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--mode", "combine"], "Unknown mode 'combine'"),
        (["--critic", "nobody"], "Unknown critic"),
        (["--metric", "vendy_1"], "vendi_1"),
        (["--critiques", "0"], "`critiques`"),
        (["--feasible", ""], "--feasible"),
    ],
)
def test_the_command_names_what_is_wrong(folder: str, tmp_path: Path, capsys: Any, words: Any, says: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"prompt": "a", "completions": ["x", "x"]}\n', "utf-8")
    assert main(["widen", str(path), "--model", folder, *words]) == 2
    assert says in capsys.readouterr().err
    assert main(["widen", str(path), "--model", "./nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
