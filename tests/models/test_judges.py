"""Judges of pairs: tiny cross-encoders against a plain forward pass, the cache, names, errors and hostile texts."""

import json
import os
import random
import re
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest

from divmon.errors import ConfigError, MissingDependency
from divmon.models import judges
from divmon.models.judges import (
    entails_both_ways,
    load_equivalence,
    load_judges,
    load_nli,
    rouge1_same,
    short_answers_same,
)
from divmon.models.pairs import CachedPairs, load_cross_encoder

WORDS = ["the", "cat", "sat", "dog", "ran", "yes", "no", "a", "b", "c", ".", "!", "one", "two", "three"]
PAIRS = [
    ("the cat sat .", "the dog ran ."),
    ("the dog ran .", "the cat sat ."),
    ("yes", "no"),
    ("", ""),
    ("one two three " * 30, "the cat"),
    ("a", "b c " * 200),
    ("unknown words only", "the"),
    ("\ud800 lone", "\x00"),
    ("森の中で", "e\u0301" * 40),
    ("x" * 100_000, "cat"),
]
MNLI = ["contradiction", "neutral", "entailment"]


def streams():
    import torch

    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def saved(path, *, labels, seed=0, kind="bert"):
    """A random classifier of pairs and a tokenizer of whole words, saved as Transformers saves them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
        RobertaConfig,
        RobertaForSequenceClassification,
    )

    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(marks + WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    inputs = inputs if kind == "bert" else inputs[::2]
    PreTrainedTokenizerFast(tokenizer_object=raw, model_input_names=inputs, **names).save_pretrained(path)
    config, model = {
        "bert": (BertConfig, BertForSequenceClassification),
        "roberta": (RobertaConfig, RobertaForSequenceClassification),
    }[kind]
    torch.manual_seed(seed)
    made = config(
        vocab_size=len(marks + WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, pad_token_id=0, initializer_range=1.0,
        type_vocab_size=2 if kind == "bert" else 1, id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    model(made).save_pretrained(path)
    return str(path)


def plain(path, pairs, *, most):
    """Probabilities by Transformers itself, a pair at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    found = []
    for a, b in pairs:
        a, b = (text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in (a, b))
        inputs = tokenizer([a], [b], truncation="longest_first", max_length=most, return_tensors="pt")
        with torch.no_grad():
            found.append(model(**inputs).logits[0].softmax(-1).tolist())
    return np.array(found)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of tiny models by what they are."""
    root = tmp_path_factory.mktemp("judges")
    labels = {
        "mnli": MNLI,
        "other": ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"],
        "two": ["LABEL_0", "LABEL_1"],
        "one": ["LABEL_0"],
        "plain": ["LABEL_0", "LABEL_1", "LABEL_2"],
        "binary": ["entailment", "not_entailment"],
    }
    made = {name: saved(root / name, labels=of) for name, of in labels.items()}
    return {**made, "roberta": saved(root / "roberta", labels=MNLI, kind="roberta")}


@pytest.mark.parametrize(("name", "most"), [("mnli", 64), ("other", 64), ("roberta", 63)])
def test_probabilities_are_those_of_a_plain_forward_pass(folders, name, most):
    before = streams()
    judge, label = load_nli(folders[name])
    found = judge(PAIRS)
    assert streams() == before
    assert label == folders[name]
    expected = plain(folders[name], PAIRS, most=most)
    order = [0, 1, 2] if name == "other" else [2, 1, 0]
    np.testing.assert_allclose(found, expected[:, order], atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)
    assert found.std(axis=0).max() > 0.05, "the tiny model tells pairs apart"


def test_a_pair_has_the_same_number_in_any_company(folders):
    judge = load_nli(folders["mnli"])[0]
    together = judge(PAIRS)
    model = load_cross_encoder(folders["mnli"])
    for pair, row in zip(PAIRS, together, strict=True):
        np.testing.assert_allclose(model([pair])[0][[2, 1, 0]], row, atol=1e-5)
        assert judge([pair])[0].tolist() == row.tolist(), "once judged, always so"
    np.testing.assert_allclose(model(PAIRS * 9)[: len(PAIRS), [2, 1, 0]], together, atol=1e-5)


def test_the_model_is_in_evaluation_mode_without_gradients(folders):
    model = load_cross_encoder(folders["mnli"])._model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_each_pair_is_asked_once_and_the_one_not_seen_for_longest_is_forgotten():
    asked = []

    def judge(pairs):
        asked.append(list(pairs))
        return np.array([[len(a), len(b)] for a, b in pairs], dtype=float)

    cached = CachedPairs(judge, size=2)
    assert cached([("a", "bb"), ("bb", "a"), ("a", "bb")]).tolist() == [[1, 2], [2, 1], [1, 2]]
    cached([("a", "bb")])
    cached([("c", "c")])
    cached([("a", "bb")])
    cached([("bb", "a")])
    assert asked == [[("a", "bb"), ("bb", "a")], [("c", "c")], [("bb", "a")]]
    assert cached([("1", "2"), ("ab", "c"), ("a", "bc")]).tolist() == [[1, 1], [2, 1], [1, 2]]
    assert len(cached([])) == 0
    assert cached([("\ud800", "a"), ("\udfff", "a")]).shape == (2, 2)
    with pytest.raises(ConfigError, match="at least one pair"):
        CachedPairs(judge, size=0)


@pytest.mark.parametrize("name", ["two", "plain", "binary", "one"])
def test_labels_that_are_not_of_entailment_are_refused(folders, name):
    with pytest.raises(ConfigError, match="a model of entailment has entailment, neutral and contradiction"):
        load_nli(folders[name])


def test_a_classifier_that_was_never_trained_is_refused(folders, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(folders["mnli"]).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folders["mnli"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = dict(enumerate(MNLI))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"is no trained classifier: .*classifier.weight.* would be random"):
        load_nli(str(tmp_path))


def test_functions_are_used_as_they_are():
    def mine(pairs):
        return np.zeros(len(pairs))

    assert load_nli(mine) == (mine, "mine")
    assert load_equivalence(mine) == (mine, "mine")


@pytest.mark.parametrize("load", [load_nli, load_equivalence])
@pytest.mark.parametrize("bad", [3, ["a"], "", "  "])
def test_what_is_not_a_judge_is_refused(load, bad):
    with pytest.raises(ConfigError, match="must"):
        load(bad)


@pytest.mark.parametrize("spec", ["roberta", "nli", "nli:", "pair:", "pair", "rouge-1"])
def test_an_unknown_judge_of_equivalence_is_refused_with_a_suggestion(spec):
    with pytest.raises(ConfigError, match="Unknown judge of equivalence"):
        load_equivalence(spec)
    with pytest.raises(ConfigError, match=re.escape("Did you mean 'noveltybench'?")):
        load_equivalence("noveltybenhc")


@pytest.mark.parametrize("load", [load_nli, lambda name: load_equivalence(f"pair:{name}@0.5")])
def test_a_model_that_cannot_be_loaded_is_a_configuration_error(load, tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot load the judge .*nothing-here"):
        load(str(tmp_path / "nothing-here"))


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependency, match="pip install transformers"):
        load_nli("some/model")


def test_entailment_both_ways(folders):
    judge, name = load_equivalence(f"nli:{folders['mnli']}")
    assert name == f"nli:{folders['mnli']}"
    forth, back = (plain(folders["mnli"], p, most=64) for p in (PAIRS, [(b, a) for a, b in PAIRS]))
    expected = (forth.argmax(axis=1) == 2) & (back.argmax(axis=1) == 2)
    assert judge(PAIRS).tolist() == expected.astype(float).tolist()
    assert len(judge([])) == 0
    unsure = entails_both_ways(lambda pairs: np.array([[np.nan if a == "?" else 1.0, 0, 0] for a, _ in pairs]))
    np.testing.assert_array_equal(unsure([("a", "?"), ("a", "b")]), [np.nan, 1])


def test_a_pair_classifier_at_its_threshold(folders):
    chances = plain(folders["two"], PAIRS, most=64)[:, 1]
    for at in ("", "@0.5", "@0.102", f"@{np.median(chances):.6f}"):
        judge, name = load_equivalence(f"pair:{folders['two']}{at}")
        assert name == f"pair:{folders['two']}{at}"
        assert judge(PAIRS).tolist() == (chances > float(at[1:] or 0.5)).astype(float).tolist()
    for bad in ("@", "@two", "@-1", "@1", "@nan"):
        with pytest.raises(ConfigError, match="write a threshold from 0 to 1"):
            load_equivalence(f"pair:{folders['two']}{bad}")


def test_a_single_logit_is_a_chance(folders):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["one"])
    model = AutoModelForSequenceClassification.from_pretrained(folders["one"]).eval()
    with torch.no_grad():
        logit = float(model(**tokenizer(*PAIRS[0], return_tensors="pt")).logits)
    found = load_cross_encoder(folders["one"])(PAIRS[:1])
    assert found[0] == pytest.approx([1 - 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-logit))], abs=1e-5)


def test_noveltybench_reads_the_start_of_each_side_and_compares_words_of_short_answers(folders, monkeypatch):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    monkeypatch.setattr(judges, "NOVELTYBENCH", folders["two"])
    monkeypatch.setattr(judges, "NOVELTYBENCH_TOKENIZER", folders["mnli"])
    monkeypatch.setattr(judges, "_SIDE_TOKENS", 9)
    tokenizer = AutoTokenizer.from_pretrained(folders["two"])
    model = AutoModelForSequenceClassification.from_pretrained(folders["two"]).eval()

    def chance(a, b):
        ids, kinds = [2], [0]
        for kind, text in enumerate((a, b)):
            part = tokenizer.encode(text, add_special_tokens=False)[:9]
            ids += [*part, 3]
            kinds += [kind] * (len(part) + 1)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).logits
        return float(logits.softmax(-1)[0, 1])

    rng = np.random.default_rng(0)
    long = [tuple(" ".join(rng.choice(WORDS, rng.integers(6, 30))) for _ in range(2)) for _ in range(20)]
    chances = [chance(a, b) for a, b in long]
    at = float(np.median(chances))
    monkeypatch.setattr(judges, "NOVELTYBENCH_AT", at)
    judge, name = load_equivalence("noveltybench")
    assert name == "noveltybench"
    short = [("Yes", "yes"), ("the cat", "a dog"), ("one two", "two three"), ("", "")]
    expected = [1.0, 0.0, 1.0, 1.0, *(float(c > at) for c in chances)]
    assert judge([*short, *long]).tolist() == expected


def test_the_published_names_and_numbers():
    assert judges.NOVELTYBENCH == "yimingzhang/deberta-v3-large-generation-similarity"
    assert (judges.NOVELTYBENCH_AT, judges._SIDE_TOKENS, judges.ROUGE1_AT) == (0.102, 128, 0.458)
    assert judges.DEFAULT_NLI == "roberta-large-mnli"


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Paris", "paris", True),
        ("Paris, France", "London, France", True),  # half of the longer answer's words is enough
        ("a b c d e", "a b c x y", True),
        ("a b c d e", "a b x y z", False),
        ("a b c d e f", "a", None),
    ],
)
def test_short_answers(a, b, same):
    assert short_answers_same(a, b) is same


def test_rouge1_equals_the_rouge_package():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1"])
    rng = np.random.default_rng(1)
    pairs = [tuple(" ".join(rng.choice(WORDS, rng.integers(1, 14))) for _ in range(2)) for _ in range(200)]
    expected = [scorer.score(a, b)["rouge1"].fmeasure > 0.458 for a, b in pairs]
    assert 20 < sum(expected) < 180
    assert rouge1_same(pairs).astype(bool).tolist() == expected


def test_rouge1_of_text_in_any_script():
    same = [("", ""), ("!!!", "!!!"), ("Élan vital", "élan VITAL"), ("森 中", "森 中"), ("\ud800", "\ud800")]
    apart = [("", "a"), ("!!!", "???"), ("森 中", "海 上"), ("\ud800", "\udfff")]
    assert rouge1_same([*same, *apart]).tolist() == [1] * len(same) + [0] * len(apart)
    assert len(rouge1_same([])) == 0


def test_both_judges_as_metrics_get_them(folders):
    alone = load_judges(folders["mnli"], None)
    assert (alone.nli_name, alone.equivalence_name) == (folders["mnli"], f"nli:{folders['mnli']}")
    both = load_judges(folders["mnli"], "rouge1")
    assert both.equivalence is rouge1_same
    assert load_judges(None, None).nli is None
    assert load_judges(None, None).equivalence is None


def test_metrics_with_a_tiny_model_from_end_to_end(folders):
    from divmon.metrics import METRICS, MetricContext, evaluate
    from divmon.records import Probe, SampleBatch

    texts = ("the cat sat. the dog ran", "the dog ran. yes", "no. two three")
    context = MetricContext(SampleBatch(0, (Probe("a", "?"),), (texts,)), judges=load_judges(folders["mnli"], None))
    expected = plain(folders["mnli"], [(a, b) for a in texts for b in texts if a != b], most=64)
    whole = evaluate(METRICS["nli_diversity_whole"], context).values
    assert whole == pytest.approx([1 - (expected[:, 2] - expected[:, 0]).mean()], abs=1e-5)
    for name in ("nli_diversity", "distinct_k", "semantic_entropy"):
        assert np.isfinite(evaluate(METRICS[name], context).values).all()
