"""Law 7, first half: a setting that cannot work fails at construction, with a message that says what to write."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from divmon.alarms import Rule
from divmon.config import check_domains, fit, plan
from divmon.errors import ConfigError, ProbeError
from divmon.metrics import METRICS, Metric, resolve
from divmon.probes import ProbeSet
from divmon.records import Decoding
from divmon.settings import Settings, SettingsKwargs


def shouting(texts):
    return sum(map(str.isupper, texts)) / len(texts)


def alarm(**changes):
    return [{"name": "narrow", "metric": "tfidf_distance", "rule": "drop", "by": "20%", **changes}]


def failing(completions, **kwargs):
    return [0.0 for _ in completions]


BAD = [
    # names
    ({"evry": 5}, r"Unknown setting 'evry'. Did you mean 'every'\?"),
    ({"metrics": ["self_blue"]}, r"Unknown metric 'self_blue'. Did you mean 'self_bleu'\?"),
    ({"metrics": ["no.such:thing"]}, "Cannot import the metric 'no.such:thing': No module named 'no'"),
    ({"metrics": [lambda texts: 1.0]}, "Give a lambda a name with divmon.metrics.from_function"),
    ({"metrics": [5]}, "A metric must be a name, a Metric, or a named function"),
    ({"metrics": "self_bleu"}, r"metrics must be a list, for example metrics=\['self_bleu'\]"),
    ({"metrics": [shouting, shouting]}, "Two metrics are called 'shouting'; a name is a curve, so give one another"),
    ({"metrics": ["vendi" if "vendi" in METRICS else "self_bleu"] * 2}, "Two metrics are called"),
    ({"sinks": "console"}, r"sinks must be a list, for example sinks=\['console'\]"),
    ({"sinks": ["consol"]}, r"Unknown sink 'consol'. Did you mean 'console'\?"),
    # numbers
    ({"k": 0}, "k must be a whole number of at least 1, not 0"),
    ({"k": 2.0}, "k must be a whole number of at least 1, not 2.0"),
    ({"k": True}, "k must be a whole number of at least 1, not True"),
    ({"k": None}, "k must be a whole number of at least 1, not None"),
    ({"k": 1}, r"k=1 is too small to see diversity within a prompt. Set k=2 or more \(8 is the default\)"),
    ({"k": 1, "metrics": ["self_bleu"]}, "k=1 is too small for self_bleu, .*Set k=2 or more, or drop the metric"),
    ({"every": 0}, "every must be a whole number of at least 1, not 0"),
    ({"every": "10"}, "every must be a whole number of at least 1, not '10'"),
    ({"max_new_tokens": -1}, "max_new_tokens must be a whole number"),
    ({"batch_size": 0}, "batch_size must be a whole number"),
    ({"temperature": 0}, "temperature must be above 0, not 0: at 0 every completion is the same"),
    ({"temperature": -1}, "temperature must be above 0, not -1"),
    ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
    ({"temperature": float("nan")}, "temperature must be a number, not nan"),
    ({"temperature": float("inf")}, "temperature must be a number, not inf"),
    ({"top_p": 0}, "top_p must be above 0 and at most 1, not 0"),
    ({"top_p": 1.5}, "top_p must be above 0 and at most 1, not 1.5"),
    ({"top_p": "1"}, "top_p must be a number, not '1'"),
    ({"correct_at": "half"}, "correct_at must be a number, not 'half'"),
    ({"seed": 1.5}, "seed must be an integer, not 1.5"),
    ({"seed": True}, "seed must be an integer, not True"),
    ({"run_dir": 5}, "run_dir must be the path of a folder, not 5"),
    ({"chat": "no"}, "chat must be true or false, not 'no'"),
    ({"strict": "no"}, "strict must be true or false, not 'no'"),
    ({"strict": None}, "strict must be true or false, not None"),
    # alarms
    ({"alarms": alarm(metric="tfidf_distanse")}, r"alarm 'narrow': Unknown metric .*Did you mean 'tfidf_distance'\?"),
    ({"alarms": alarm(bye="20%")}, r"Unknown key 'bye'. Did you mean 'by'\?"),
    ({"alarms": alarm(rule="fall")}, "Unknown rule 'fall'. Known: above, absent, below, drop, outside, rise"),
    ({"alarms": alarm(then=["halt"])},
     "Unknown action 'halt'. Known: diversity_reward, entropy_band, gate, resample, "),
    ({"alarms": alarm(domain="cretive"), "probes": "creative"},
     r"'narrow' watches the domain 'cretive', which no probe has. Did you mean 'creative'\?"),
    ({"alarms": alarm(metric="semantic_distance")}, "watches 'semantic_distance', which is not measured. Add it to me"),
    ({"alarms": alarm(), "metrics": ["self_bleu"]}, r"which is not measured. .*measured now: self_bleu\)"),
    ({"alarms": alarm() * 2}, "Another alarm has this name too"),
    ({"alarms": 5}, "Write `alarms: \\[\\]` for none"),
    ({"alarms": "nowhere.yaml"}, "Cannot read the alarm rules in 'nowhere.yaml'"),
    # quality, formats, encoder
    ({"quality": 5}, r"quality must be a function \(probe, completion\) -> float, or 'rewards', not 5"),
    ({"quality": "reward"}, "quality='reward': pass a function, 'package.module:function', or 'rewards'"),
    ({"quality": "no.such:judge"}, "quality='no.such:judge' cannot be imported: No module named 'no'"),
    ({"quality": "math:nothing"}, "quality='math:nothing' cannot be imported: .*Write 'package.module:function'"),
    ({"quality": "math:pi"}, "quality='math:pi' is a float, not a function"),
    ({"quality": failing}, "quality must take a probe and a completion, .*pass quality='rewards'"),
    ({"quality": lambda text: 1.0}, "quality must take a probe and a completion"),
    ({"formats": {"steps": "(?m)^Step 1", "bad": "("}}, "formats: the regex of 'bad' does not compile: missing \\)"),
    ({"formats": {}}, "formats is an empty mapping"),
    ({"formats": "steps"}, "formats must be a function of a text, or a mapping from label to regex, not 'steps'"),
    ({"metrics": ["semantic_distance"]}, "semantic_distance needs an encoder: pass encoder='offline'"),
    ({"encoder": 5}, "An encoder is a name, a function of a list of texts, or a model, not 5"),
    ({"encoder": " "}, "An encoder's name must not be empty"),
    # judges of pairs
    ({"metrics": ["nli_diversity"]}, "nli_diversity needs a model of entailment: pass nli='roberta-large-mnli'"),
    ({"metrics": ["distinct_k"]}, "distinct_k needs a judge of whether two texts say the same: pass equivalence='roug"),
    ({"metrics": ["utility_k"]}, "utility_k needs a judge of whether two texts say the same"),
    ({"nli": 5}, "nli must be a name or a function of pairs of texts, not 5"),
    ({"nli": ""}, "nli must not be empty"),
    ({"equivalence": 5}, "equivalence must be a name or a function of pairs of texts, not 5"),
    ({"equivalence": " "}, "equivalence must not be empty"),
    ({"equivalence": "rouge2"}, r"Unknown judge of equivalence 'rouge2'. Did you mean 'rouge1'\? A function of pairs"),
    ({"equivalence": "nli:"}, "Unknown judge of equivalence 'nli:'"),
    ({"equivalence": "pair:some/model@much"}, "write a threshold from 0 to 1 after the @, as in pair:NAME@0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), BAD, ids=lambda v: str(v).split(" at 0x")[0][:40])
def test_what_cannot_work_fails_at_construction(values, message):
    with pytest.raises(ConfigError, match=message):
        plan(Settings.make(values))


def test_the_callback_looks_everything_up_when_it_is_made():
    """`plan` runs in its constructor; the module itself needs Transformers, so its text is looked at instead."""
    text = (Path(__file__).parents[1] / "divmon" / "callback.py").read_text("utf-8")
    head = text.partition("def attach")[0]
    assert "self.plan = plan(" in head


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        ("nothing.jsonl", "Cannot read nothing.jsonl"),
        ("creativ", r"Did you mean 'creative'\?"),
        ([], "There are no prompts"),
        ([{"promt": "a"}], "Row 0 has no prompt"),
    ],
)
def test_probes_that_cannot_be_read(probes, message):
    with pytest.raises(ProbeError, match=message):
        plan(Settings(probes=probes))


def test_an_empty_probe_file(tmp_path):
    (tmp_path / "p.jsonl").touch()
    with pytest.raises(ProbeError, match=r"p.jsonl is empty: write one JSON object with a 'prompt' a line"):
        plan(Settings(probes=tmp_path / "p.jsonl"))


def test_every_setting_is_a_keyword_of_the_callback():
    names = {f.name for f in fields(Settings)}
    assert set(SettingsKwargs.__annotations__) == names - {"probes"}
    assert not SettingsKwargs.__required_keys__
    in_order = [f.name for f in fields(Settings) if f.name != "probes"]
    assert list(SettingsKwargs.__annotations__) == in_order
    for name in names:
        assert f"        {name}: " in Settings.__doc__


def test_the_defaults_work():
    made = plan(Settings())
    assert made.probes is None
    assert made.default_sinks
    looks = {"encoder", "nli", "equivalence"}
    assert {m.name for m in made.metrics} == {m.name for m in METRICS.values() if m.standard and not looks & m.needs}
    assert {rule.metric for rule in made.rules} <= {m.name for m in made.metrics}
    assert {rule.severity for rule in made.rules} == {"warning"}
    assert (made.lenses.judge, made.lenses.classifier_name) == ("gold", "builtin")


def test_everything_looked_up():
    def judge(probe, completion):
        return 1.0

    def encode(texts):
        return np.ones((len(texts), 2))

    made = plan(
        Settings(
            probes=["a", {"prompt": "b", "domain": "y"}],
            metrics=["self_bleu", shouting, METRICS["length"], "divmon.metrics.lexical:UNIQUE_FRACTION",
                     "semantic_distance"],
            alarms=[*alarm(metric="shouting", domain="y"), Rule("over", metric="length", rule="absent", domain="all")],
            quality=judge, formats={"s": "^S"}, encoder=encode, sinks=[print, "console"], correct_at=1,
        )
    )  # fmt: skip
    assert [m.name for m in made.metrics] == ["self_bleu", "shouting", "length", "unique_fraction", "semantic_distance"]
    assert all(isinstance(m, Metric) for m in made.metrics)
    assert [rule.name for rule in made.rules] == ["narrow", "over"]
    assert made.probes.domains == ("default", "y")
    assert (made.lenses.quality, made.lenses.judge) == (judge, "judge")
    assert (made.lenses.encoder, made.lenses.encoder_name) == (encode, "encode")
    assert made.lenses.classifier_name == "user"
    assert [sink.name for sink in made.sinks] == ["print", "console"]


def entails(pairs):
    return np.array([[float(a == b), 0.0, float(a != b)] for a, b in pairs])


def same(pairs):
    return np.array([float(a == b) for a, b in pairs])


def test_judges_of_pairs_add_their_metrics():
    def added(**values):
        return [m.name for m in plan(Settings(**values)).metrics if m.needs & {"nli", "equivalence"}]

    assert added() == []
    assert added(nli=entails) == ["nli_diversity"]
    assert added(equivalence=same) == ["distinct_k", "semantic_entropy"]
    judges = plan(Settings(nli=entails, equivalence="rouge1")).lenses.judges
    assert (judges.nli, judges.nli_name, judges.equivalence_name) == (entails, "entails", "rouge1")


def test_entailment_both_ways_stands_in_for_equivalence():
    made = plan(Settings(nli=entails, metrics=["distinct_k"]))
    assert made.lenses.judges.equivalence_name == "nli:entails"
    assert made.lenses.judges.equivalence([("a", "a"), ("a", "b")]).tolist() == [1, 0]


def test_quality_by_name_and_by_rewards():
    named = plan(Settings(quality="divmon.metrics.answers:gold_match")).lenses
    assert named.quality.__name__ == "gold_match"
    assert named.judge == "gold_match"
    rewards = plan(Settings(quality="rewards")).lenses
    assert (rewards.quality, rewards.judge) == (None, "rewards")


@pytest.mark.parametrize("quality", [lambda probe, text: 1, lambda *args: 1, lambda probe, text, extra=2: 1, max])
def test_whatever_takes_a_probe_and_a_text_may_judge(quality):
    assert plan(Settings(quality=quality)).lenses.quality is quality


def test_no_alarms_and_no_sinks_and_one_completion():
    made = plan(Settings(alarms=[], sinks=[], k=1, metrics=["length", shouting]))
    assert (made.rules.rules, made.sinks) == ((), ())
    assert len(plan(Settings(metrics=[])).rules) == 0


def test_decoding_takes_the_cap_nobody_named():
    assert Settings(temperature=0.7, top_p=0.9, seed=3).decoding(50) == Decoding(0.7, 0.9, 50, 3, "strip")
    assert Settings(max_new_tokens=9).decoding(50).max_new_tokens == 9


def test_every_domain_a_rule_names_must_exist():
    probes = ProbeSet.of("creative", limit=2)
    rules = [Rule("a", metric="m", rule="absent", domain=d) for d in (None, "all", "creative")]
    check_domains(rules, probes)
    with pytest.raises(ConfigError, match=r"which no probe has. Did you mean 'creative'\?"):
        check_domains([Rule("a", metric="m", rule="absent", domain="creativ")], probes)


def write(tmp_path, text, name="divmon.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_settings_from_a_file(tmp_path):
    write(tmp_path, "alarms:\n- {name: narrow, metric: self_bleu, rule: rise, by: 0.2}\n", "alarms.yaml")
    path = write(tmp_path, "probes: creative+math\nk: 4\nmetrics: [self_bleu]\nalarms: alarms.yaml\n")
    settings = Settings.load(path)
    assert settings == Settings(probes="creative+math", k=4, metrics=["self_bleu"], alarms=tmp_path / "alarms.yaml")
    assert Settings.load(str(path)) == settings
    assert [rule.name for rule in plan(settings).rules] == ["narrow"]


def test_alarms_may_stand_in_the_file(tmp_path):
    path = write(tmp_path, "alarms:\n- name: narrow\n  metric: self_bleu\n  rule: rise\n  by: 20%\n")
    assert [rule.name for rule in plan(Settings.load(path)).rules] == ["narrow"]
    assert Settings.load(write(tmp_path, "alarms: []\n")).alarms == []


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}"])
def test_an_empty_file_is_the_defaults(tmp_path, text):
    assert Settings.load(write(tmp_path, text)) == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evry: 5\n", r"divmon.yaml: Unknown setting 'evry'. Did you mean 'every'\?"),
        ("1: 2\n", "divmon.yaml: Unknown setting 1"),
        ("k: [\n", "divmon.yaml is not YAML"),
        ("k: !!python/object:os.system 1\n", "divmon.yaml is not YAML"),
        (b"k: \xff\n", "divmon.yaml is not YAML"),
        ("- k\n", "divmon.yaml must hold settings, one 'name: value' a line"),
        ("[]", "divmon.yaml must hold settings"),
        ("false", "divmon.yaml must hold settings"),
        ("just words", "divmon.yaml must hold settings"),
        ("temperature: 1e0\n", "temperature must be a number, not '1e0'"),
        ("k: 0\n", "k must be a whole number"),
    ],
)
def test_a_file_that_cannot_work(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        Settings.load(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read settings from .*none.yaml: No such file"):
        Settings.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"Cannot read the alarm rules in .*gone.yaml"):
        plan(Settings.load(write(tmp_path, "alarms: gone.yaml\n")))


def test_default_stands_for_the_default_metrics_and_sinks() -> None:
    def shouting(texts: list[str]) -> float:
        return 0.0

    def keep(observation: object) -> None:
        pass

    chosen = plan(Settings(metrics=[shouting, "default"], sinks=["default", keep]))
    assert [m.name for m in chosen.metrics[:2]] == ["shouting", "tfidf_distance"]
    assert len(chosen.metrics) == 1 + len(plan(Settings()).metrics)
    assert chosen.default_sinks
    assert len(chosen.sinks) == 1
    assert not plan(Settings(sinks=[keep])).default_sinks


def test_settings_can_be_handed_to_the_callback_and_refined() -> None:
    from divmon.callback import DiversityCallback

    chosen = DiversityCallback(Settings(probes=["a", "b"], k=4, every=5), every=7).plan
    assert (chosen.settings.k, chosen.settings.every) == (4, 7)
    assert chosen.probes is not None
    assert [probe.text for probe in chosen.probes] == ["a", "b"]


def test_what_confirmations_may_cost(tmp_path) -> None:
    rule = {"name": "fall", "metric": "tfidf_distance", "rule": "drop", "by": "20%", "severity": "critical"}
    path = tmp_path / "alarms.yaml"
    path.write_text(f"alpha: 0.01\nconfirmations: 3\nalarms: [{rule}]\n")
    read = plan(Settings(alarms=path)).rules
    assert (read.alpha, read.confirmations, read.confirm_k, read.confirms) == (0.01, 3, None, True)
    said = plan(Settings(alarms=path, alpha=0.1, confirm_k=16)).rules
    assert (said.alpha, said.confirmations, said.confirm_k) == (0.1, 3, 16)
    default = plan(Settings(alarms=[rule])).rules
    assert (default.alpha, default.confirmations) == (0.05, 8)
    assert not plan(Settings()).rules.confirms
    assert not plan(Settings(alarms=[rule], confirmations=0)).rules.confirms
    for wrong, message in (
        ({"alpha": 2}, "`alpha` is a probability"),
        ({"confirmations": -1}, "`confirmations` is a whole number from 0"),
        ({"confirm_k": 1}, "`confirm_k` is a whole number from 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan(Settings(alarms=[rule], **wrong))


def test_a_silence_names_a_domain_that_exists() -> None:
    silence = {"alarm": "narrow", "until": 9, "domain": "creativ"}
    with pytest.raises(
        ConfigError, match=r"The silence of 'narrow' names the domain 'creativ'.* Did you mean 'creative'"
    ):
        plan(Settings(probes="creative", alarms={"alarms": alarm(), "silences": [silence]}))


def test_a_share_of_a_number_that_may_be_negative_is_not_confirmed() -> None:
    signed = replace(resolve("length"), name="signed", family="lexical", bounds=(-1.0, 1.0))
    rule = {"name": "fall", "metric": "signed", "rule": "drop", "by": "20%", "severity": "critical"}
    with pytest.raises(ConfigError, match=r"signed can be below 0\. Write `by` and `tolerate` in its own unit"):
        plan(Settings(alarms=[rule], metrics=[signed]))
    assert plan(Settings(alarms=[{**rule, "by": 0.2}], metrics=[signed])).rules.confirms
    assert not plan(Settings(alarms=[{**rule, "evidence": "screen"}], metrics=[signed])).rules.confirms


def test_default_rules_about_domains_that_no_probe_has_are_left_out():
    probes = ProbeSet.of(["Write a poem."])
    assert "voices-lost" not in {rule.name for rule in fit(plan(Settings()), probes).rules}
    assert "voices-lost" in {rule.name for rule in fit(plan(Settings()), ProbeSet.of("rewrite")).rules}
