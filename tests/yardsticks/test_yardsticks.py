"""What a user gives to compare with: by definition, by brute force, and with errors that name field and line."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

import divmon
from divmon.config import plan
from divmon.errors import ConfigError, DivmonError
from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.metrics.attributes import ATTRIBUTES, Panel, attributes
from divmon.metrics.hivemind import inter_similarity, intra_similarity, source_models
from divmon.metrics.human import DIMENSIONS, bare_words, dimensions
from divmon.metrics.others import Bank, alike, hivemind_metrics
from divmon.metrics.people import References, human_metrics
from divmon.metrics.rewrites import voice_metrics
from divmon.records import Probe, SampleBatch
from divmon.settings import Settings
from divmon.yardsticks import read_bank, read_panel, read_references, read_rewrites

TABLE = Path(__file__).parents[2].parent / "shared" / "oracles" / "tables" / "persona.json"
FIXTURE = (
    "The cat sat. The dog sat. A bird sang to the cat. The cat ran. A dog ran. "
    "The bird flew. The dog barked. A cat slept. The bird slept. The dog slept."
)


def writing(rng, n, *, types, words=(30, 60)):
    vocabulary = [f"{rng.choice([*'bcdfgklmnprst'])}{rng.choice([*'aeiou'])}{i}x" for i in range(types)]
    return [" ".join(rng.choice(vocabulary, rng.integers(*words))) for _ in range(n)]


def batch(rows, *, domain="default"):
    probes = tuple(Probe(str(i), f"question {i}", domain=domain) for i in range(len(rows)))
    return SampleBatch(0, probes, tuple(map(tuple, rows)))


def value(metric, one, **more):
    result = evaluate(metric, MetricContext(one, **more))
    if hasattr(result, "values"):
        return result.values
    return float(result.combine(result.parts))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# people


def test_ten_sentences_against_three_people_by_hand():
    """The six numbers of the ten sentences, worked by hand in test_human, in standard deviations of three texts."""
    people = [
        FIXTURE.replace("slept", "ran").replace("A ", "The "),
        FIXTURE + " A bird sat.",
        FIXTURE.replace("cat", "hen sat"),
    ]
    own = np.array([33, 12, math.nan, math.sqrt(135 / 12 - (33 / 12) ** 2), 1.0, 132 / 21])
    own[2] = dimensions([FIXTURE])[0, 2]
    length = min(len(bare_words(text)) for text in people)
    assert length == 33
    theirs = dimensions(people, length=length)
    sd = theirs.std(axis=0, ddof=1)
    metrics = {m.name: m for m in human_metrics(References(tuple(people), length=length))}
    for d, name in enumerate(DIMENSIONS):
        found = value(metrics[f"human_gap_{name}"], batch([[FIXTURE]]))
        expected = (own[d] - theirs[:, d].mean()) / sd[d] if sd[d] > 1e-9 else math.nan
        assert found == pytest.approx(expected, abs=1e-9, nan_ok=True), name


def test_given_people_give_the_gap_of_the_definition():
    rng = np.random.default_rng(0)
    people, policy = writing(rng, 25, types=60), writing(rng, 12, types=30)
    expected = divmon.human_gap(policy, people, n_boot=0)
    metrics = human_metrics(References(tuple(people)))
    one = batch([[text] for text in policy])
    assert value(metrics[0], one) == pytest.approx(expected.distance, abs=1e-9)
    np.testing.assert_allclose([value(m, one) for m in metrics[1:]], expected.gaps, atol=1e-9)
    details = evaluate(metrics[0], MetricContext(one))
    assert details.details(details.parts)["references"] == 25


def test_people_of_a_domain_are_compared_with_that_domain():
    rng = np.random.default_rng(1)
    short, rich, policy = (writing(rng, 8, types=types) for types in (15, 200, 30))
    both = References((*short, *rich), ("a",) * 8 + ("b",) * 8)
    for domain, people in (("a", short), ("b", rich), ("else", [*short, *rich])):
        alone = human_metrics(References(tuple(people)))[2]
        assert value(human_metrics(both)[2], batch([policy], domain=domain)) == pytest.approx(
            value(alone, batch([policy]))
        )


def test_each_dimension_of_the_probes_own_references_is_that_of_the_distance():
    rng = np.random.default_rng(2)
    references, rows = writing(rng, 9, types=50), [writing(rng, 2, types=25) for _ in range(9)]
    probes = tuple(Probe(str(i), "?", reference=text) for i, text in enumerate(references))
    context = MetricContext(SampleBatch(0, probes, tuple(map(tuple, rows))))
    whole = evaluate(METRICS["human_gap"], context)
    gaps = whole.details(whole.parts)["gaps"]
    for name in DIMENSIONS:
        result = evaluate(METRICS[f"human_gap_{name}"], context)
        assert float(result.combine(result.parts)) == pytest.approx(gaps.get(name, math.nan), nan_ok=True)


def test_too_short_is_missing_with_what_to_do():
    rng = np.random.default_rng(3)
    metric = human_metrics(References(tuple(writing(rng, 5, types=20))))[0]
    result = evaluate(metric, MetricContext(batch([["far too short"]])))
    assert math.isnan(float(result.combine(result.parts)))
    assert "max_new_tokens" in result.reason
    few = evaluate(human_metrics(References(("one two " * 10,)))[0], MetricContext(batch([["x"]])))
    assert "fewer than 3" in few.reasons[0]


def test_the_gap_streams_through_a_file_in_blocks():
    rng = np.random.default_rng(4)
    people, texts = writing(rng, 20, types=60), writing(rng, 300, types=30)
    names = ["human_gap", "human_gap_abundance"]
    rows = [{"prompt": f"q{i}", "completion": text} for i, text in enumerate(texts)]
    found = divmon.measure(rows, references=people, metrics=names)
    bound = {metric.name: metric for metric in human_metrics(References(tuple(people)))}
    for name in names:
        measured = found.get(name).measurement
        assert measured.n == 300
        assert "first" not in measured.signature  # all prompts, not a sample of them
        assert measured.value == pytest.approx(value(bound[name], batch([[text] for text in texts])), abs=1e-9)


def test_the_shipped_references_are_what_they_say():
    found = read_references("shipped")
    lines = [json.loads(line) for line in (Path(divmon.__file__).parent / "probes/references/people.jsonl").open()]
    assert len(found.texts) == len(lines) == 49
    assert len({line["author"] for line in lines}) == 49
    assert all(line["licence"] == "public domain" and line["year"] < 1929 and line["text"].isascii() for line in lines)
    fiction, rest = found.of("creative"), found.of("rewrite")
    assert len(fiction) + len(rest) == 49
    apart = divmon.human_gap(fiction, rest, n_boot=200)
    assert (apart.low <= 0).sum() >= 5  # people beside people
    assert (apart.high >= 0).sum() >= 5


# other models


def table_of_vectors(rng):
    known = {}

    def encoder(texts):
        return np.array([known.setdefault(text, rng.normal(size=5)) for text in texts])

    return encoder, known


def pools(rng, models, prompts, k=3):
    return {
        m: [[f"{m if rng.random() < 0.7 else 'all'} says {rng.integers(9)}" for _ in range(k)] for _ in range(prompts)]
        for m in models
    }


def test_likeness_to_a_bank_equals_brute_force():
    rng = np.random.default_rng(5)
    encoder, known = table_of_vectors(rng)
    drawn = pools(rng, ("own", "x", "y"), 4)
    bank = read_bank(
        [
            {"prompt": f"question {i}", "model": m, "completions": drawn[m][i]}
            for i, m in itertools.product(range(4), "xy")
        ]
    )
    one = batch(drawn["own"])
    similarity, sources, repetition = (value(m, one, encoder=encoder) for m in hivemind_metrics(bank, encoder=True))

    def cosine(a, b):
        return known[a] @ known[b] / np.linalg.norm(known[a]) / np.linalg.norm(known[b])

    for p in range(4):
        own, x, y = (drawn[m][p] for m in ("own", "x", "y"))
        expected = np.mean([np.mean([cosine(a, b) for a in own for b in other]) for other in (x, y)])
        assert similarity[p] == pytest.approx(expected, abs=1e-9)
        assert repetition[p] == pytest.approx(
            np.mean([cosine(a, b) for a, b in itertools.combinations(own, 2)]), abs=1e-9
        )
        pool = [(m, text) for m, row in (("own", own), ("x", x), ("y", y)) for text in row]
        counts = []
        for i, (_, mine) in enumerate(pool):
            others = [(round(cosine(mine, text), 9), m) for j, (m, text) in enumerate(pool) if j != i]
            last = sorted(others)[-3][0]
            sure, tied = ([m for c, m in others if (c > last if s else c == last)] for s in (True, False))
            draws = [len({*sure, *drawn}) for drawn in itertools.combinations(tied, 3 - len(sure))]
            counts.append(np.mean(draws))
        assert sources[p] == pytest.approx(np.mean(counts), abs=1e-9)


def test_surfaces_of_own_completions_repeat_as_tfidf_distance_says():
    rng = np.random.default_rng(6)
    drawn = pools(rng, ("own", "x"), 3)
    bank = read_bank([{"prompt": f"question {i}", "model": "x", "completions": drawn["x"][i]} for i in range(3)])
    one = batch(drawn["own"])
    similarity, _, repetition = (value(metric, one) for metric in hivemind_metrics(bank))
    np.testing.assert_allclose(repetition, 1 - value(METRICS["tfidf_distance"], one), atol=1e-9)
    same = hivemind_metrics(read_bank([{"prompt": "question 0", "model": "x", "completions": drawn["own"][0]}]))
    found = value(same[0], one)
    assert found[0] > similarity[0]
    assert np.isnan(found[1:]).all()  # not in the bank


def test_models_beside_each_other_equal_the_functions_of_vectors():
    rng = np.random.default_rng(7)
    encoder, known = table_of_vectors(rng)
    drawn = pools(rng, ("a", "b", "c"), 3)
    bank = Bank({f"q{p}": {m: tuple(rows[p]) for m, rows in drawn.items()} for p in range(3)})
    found = alike(bank, encoder)
    vectors = {m: [np.array([known[t] for t in row]) for row in rows] for m, rows in drawn.items()}
    for (i, a), (j, b) in itertools.product(enumerate("abc"), enumerate("abc")):
        expected = intra_similarity(vectors[a]) if a == b else inter_similarity(vectors[a], vectors[b])
        np.testing.assert_allclose(found.similarity[:, i, j], expected, atol=1e-9)
    np.testing.assert_allclose(found.sources, source_models(vectors, nearest=3), atol=1e-9)
    assert found.models == ("a", "b", "c")
    with pytest.raises(ConfigError, match="no prompt was answered by all"):
        divmon.hivemind([{"prompt": m, "model": m, "completion": "x"} for m in "ab"])
    with pytest.raises(ConfigError, match="There is one model, 'a'"):
        divmon.hivemind([{"prompt": "?", "model": "a", "completion": "x"}])


def test_models_that_all_say_one_thing_are_each_others_sources_whoever_comes_first():
    copies = Bank({"q": dict.fromkeys("abc", ("the same",) * 4)})
    found = alike(copies).sources[0]
    own = math.comb(8, 4) / math.comb(11, 4)  # none of the three other copies of its own among four of eleven
    other = math.comb(7, 4) / math.comb(11, 4)
    assert found == pytest.approx((1 - own) + 2 * (1 - other), abs=1e-9)
    assert found > 2


# voices


def test_the_published_table_comes_back_from_rows():
    if not TABLE.exists():
        pytest.skip("the published table is not here")
    table = json.loads(TABLE.read_text())
    ratios = table["spread_ratio_sd_ai_over_sd_writer"]
    n = sum(table[name] for name in ("ai", "equal", "own"))
    preferred = [name for name in ("ai", "equal", "own") for _ in range(table[name])]
    rng = np.random.default_rng(0)
    columns = []
    for ratio in ratios.values():
        own, model = (x - x.mean() for x in rng.normal(size=(2, n)))
        columns += [50 + 10 * own / own.std(ddof=1), 58 + 10 * ratio * model / model.std(ddof=1)]
    scores = np.array(columns).T.reshape(n, len(ratios), 2)
    rows = [
        {"original": json.dumps(row[:, 0].tolist()), "rewrite": json.dumps(row[:, 1].tolist()), "preferred": one}
        for row, one in zip(scores, preferred, strict=True)
    ]
    panel = {name: (lambda text, i=i: json.loads(text)[i]) for i, name in enumerate(ratios)}
    found = divmon.voice(rows, panel, n_boot=50)
    assert [round(100 * found.acceptance[name], 1) for name in ("ai", "equal", "own")] == table["percent"]
    for one in found.attributes:
        assert one.spread == pytest.approx(ratios[one.name], abs=1e-9)
        assert one.shift == pytest.approx(8, abs=1e-9)
        assert one.spread_interval[0] < ratios[one.name] < one.spread_interval[1]


def test_a_panel_of_ones_own_takes_the_place_of_the_shipped_one():
    own = [f"{'word ' * (i + 2)}here{'!' * (i % 3)}" for i in range(6)]
    probes = tuple(Probe(str(i), "?", reference=text) for i, text in enumerate(own))
    one = SampleBatch(0, probes, tuple((text + " more",) for text in own))
    spread, shift, length_spread, length_shift = voice_metrics(read_panel({"length": len}))
    assert (length_spread.name, length_shift.name) == ("voice_spread_length", "voice_shift_length")
    assert value(spread, one) == value(length_spread, one) == pytest.approx(1.0)
    sd = np.std([len(text) for text in own], ddof=1)
    assert value(length_shift, one) == value(shift, one) == pytest.approx(5 / sd)
    both = read_panel(["default", len])
    assert both.names == (*ATTRIBUTES, "len")
    np.testing.assert_array_equal(both.score(own)[:, :-1], attributes(own))
    assert voice_metrics(Panel())[0].signature == METRICS["voice_spread"].signature


def test_several_texts_of_one_author_count_once():
    rows = [
        {"original": "a" * n, "rewrite": "b" * m, "author": who}
        for n, m, who in ((2, 3, "x"), (4, 5, "x"), (9, 7, "y"), (5, 5, "z"))
    ]
    found = divmon.voice(rows, {"length": len}, n_boot=0).attributes[0]
    assert (found.n, found.writer, found.model) == (3, pytest.approx(17 / 3), pytest.approx(16 / 3))
    assert found.spread == pytest.approx(np.std([4, 7, 5], ddof=1) / np.std([3, 9, 5], ddof=1))


# settings


def test_nothing_is_added_unless_something_is_given(tmp_path):
    plain = {metric.name for metric in plan(Settings()).metrics}
    people = write(tmp_path / "people.jsonl", [{"text": FIXTURE}] * 3)
    bank = [{"prompt": "a", "model": "x", "completion": "b"}]
    given = plan(Settings(references=str(people), others=bank, attributes={"size": len}))
    assert {metric.name for metric in given.metrics} - plain == {
        "human_gap", *(f"human_gap_{name}" for name in DIMENSIONS), "hivemind_similarity", "source_models",
        "hivemind_repetition", "voice_spread_size", "voice_shift_size", "voice_shift",
    }  # fmt: skip
    assert given.given.signature.count("|") == 2
    chosen = plan(Settings(references=str(people), metrics=["human_gap"], alarms=[])).metrics
    assert "references:3@" in chosen[0].signature
    named = plan(Settings(attributes={"size": len}, metrics=["voice_spread_size"], alarms=[])).metrics
    assert [metric.name for metric in named] == ["voice_spread_size"]
    with pytest.raises(ConfigError, match="none of them is a probe"):
        plan(Settings(probes=["another"], others=bank))


@pytest.mark.parametrize(
    ("read", "rows", "said"),
    [
        (read_references, [{"text": "fine"}, {"txt": "?"}], "line 2: no 'text'.*'txt'"),
        (read_references, [{"text": "fine"}, {"text": 3}], "line 2: 'text' must be a text"),
        (read_references, [["?"]], "line 1: not an object with a 'text'"),
        (read_bank, [{"prompt": "a", "model": "m", "output": "b"}, {"prompt": "a"}], "line 2: no comp"),
        (read_bank, [{"prompt": "a", "model": 3, "completion": "b"}], "line 1: 'model' must be"),
        (read_bank, [{"prompt": "a", "model": "own", "completion": "b"}], "line 1: 'model' is 'own'"),
        (read_bank, [{"model": "m", "completion": "b"}], "line 1 has no prompt"),
        (read_rewrites, [{"original": "a", "rewrite": "b"}, {"original": "a"}], "line 2: no 'rewrite'"),
        (read_rewrites, [{"rewrite": "b"}], "line 1: no 'original'"),
        (read_rewrites, [{"original": "a", "rewrites": []}], "line 1: 'rewrites' must be a list"),
        (read_rewrites, [{"original": "a", "rewrite": "b", "score": "good"}], "line 1: 'score' must be a number"),
        (read_rewrites, [{"original": "a", "rewrite": "b", "score": float("inf")}], "line 1: 'score' must be a number"),
        (divmon.human_gap, [{"text": "fine"}, {"text": 3}], "line 2: 'text' must be a text"),
        (read_rewrites, [{"original": "a", "rewrite": "b", "preferred": "me"}], "line 1: 'preferred' must be one of"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_field_and_line(tmp_path, read, rows, said):
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DivmonError, match=rf"rows\.jsonl, {said}"):
        read(str(path))
    with pytest.raises(DivmonError, match=said):
        read(rows)


@pytest.mark.parametrize(
    ("panel", "said"),
    [
        ("clarity", "a mapping from name to function"),
        (["questionz"], "Did you mean 'questions'"),
        ({"size": 3}, "named function of one text"),
        ([lambda text: 1.0], "Give a lambda a name"),
        ({"questions": len}, "Two attributes"),
        (["no.such:thing"], "Cannot import the attribute"),
        ([], "empty"),
    ],
)
def test_attributes_that_cannot_work_are_refused(panel, said):
    with pytest.raises(ConfigError, match=said):
        Settings.make({"attributes": panel}) and plan(Settings(attributes=panel))


def test_an_attribute_that_returns_no_number_says_which():
    with pytest.raises(ValueError, match="'clarity' returned 'high'"):
        read_panel({"clarity": lambda text: "high"}).score(["x"])


@pytest.mark.parametrize("source", [{"a": "b"}, {"a", "b"}, 3, b"people.jsonl"])
def test_what_is_no_list_is_refused(source):
    for read, name in ((read_references, "references="), (read_bank, "others=")):
        with pytest.raises(ConfigError, match=name):
            read(source)


def test_a_file_beside_the_settings_is_found(tmp_path):
    write(tmp_path / "people.jsonl", [{"text": FIXTURE}] * 3)
    (tmp_path / "divmon.yaml").write_text("references: people.jsonl\nmetrics: [human_gap]\nalarms: []\n")
    [metric] = plan(Settings.load(tmp_path / "divmon.yaml")).metrics
    assert "references:3@" in metric.signature


def test_a_model_is_named_after_its_file_and_a_column_of_texts_will_do(tmp_path):
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "mine.jsonl", [{"prompt": "?", "completion": "a b c"}])
    write(tmp_path / "theirs.v2.jsonl", [{"prompt": "?", "completion": "a b d"}])
    assert read_bank([tmp_path / "mine.jsonl", tmp_path / "theirs.v2.jsonl"]).models == ("mine", "theirs.v2")
    rows = datasets.Dataset.from_list([{"text": "one text", "domain": "a"}, {"text": "another", "domain": "b"}])
    assert read_references(rows["text"]).texts == read_references(rows).texts == ("one text", "another")
    assert read_references(rows).of("b") == ("another",)


def test_a_pool_of_twenty_five_models_is_measured():
    rng = np.random.default_rng(8)
    texts = [pools(rng, "x", 1, k=50)["x"][0] for _ in range(25)]
    bank = read_bank([{"prompt": "question 0", "model": f"m{i}", "completions": row} for i, row in enumerate(texts)])
    one = batch(pools(rng, ("own",), 1, k=50)["own"])
    similarity, sources, _ = (value(metric, one)[0] for metric in hivemind_metrics(bank))
    assert 0 < similarity < 1
    assert 10 < sources <= 26
