"""`divmon rules plan`: the noise found in a pilot, and what simulated runs say, against closed forms and the engine."""

import json
import math

import numpy as np
import pytest
from scipy.stats import norm

from divmon.alarms import Alarms, Rule, RuleSet
from divmon.alarms.evidence import sign_flip
from divmon.alarms.planning import plan_rules, power
from divmon.alarms.simulation import BANK, Pilot, Runs, approximate_p, noise_factors
from divmon.alarms.spending import CONFIRMATIONS, level
from divmon.cli import main
from divmon.errors import ConfigError
from divmon.history import Evaluation, History
from divmon.metrics import METRICS, MetricContext, evaluate
from divmon.monitor import Monitor
from divmon.records import Measurement, Probe, SampleBatch, Verdict
from divmon.rulebook.commands import plan_lines
from divmon.rulebook.pilot import pilots, read_pilot

K = 8


def normal(p=24, sd=0.08, mean=0.6, seed=0, **kwargs):
    """A pilot whose prompts have normal noise with standard deviation `sd` at K."""
    each = np.random.default_rng(seed).normal(0, sd * math.sqrt(K), (p, K))
    each -= each.mean(axis=1, keepdims=True)
    each *= sd * math.sqrt(K) / np.sqrt((each**2).mean() * K / (K - 1))  # exactly this noise over all prompts
    return Pilot("tfidf_distance", "x", np.full(p, mean), each, p, **kwargs)


def fall(by="10%", name="fall", **kwargs):
    return Rule(name, metric="tfidf_distance", domain="x", rule="drop", by=by, **kwargs)


@pytest.mark.parametrize("n", [13, 16, 24])
@pytest.mark.parametrize("kind", ["normal", "heavy", "lattice"])
def test_the_approximate_p_is_near_that_of_every_relabelling(n, kind):
    rng = np.random.default_rng(n)
    shape = (200, n)
    d = {
        "normal": rng.normal(0.4, 1, shape),
        "heavy": 0.6 + rng.standard_t(2, shape),
        "lattice": (rng.binomial(32, 0.1, shape) - rng.binomial(32, 0.05, shape)) / 32,
    }[kind]
    exact = np.array([sign_flip(row, alpha=0.999, seed=0).p for row in d])
    near = approximate_p(d)[exact < 0.5] / exact[exact < 0.5]
    assert 0.9 < np.median(near) < 1.1
    assert np.quantile(near, 0.05) > 0.8
    assert np.quantile(near, 0.95) < 1.4


def test_the_approximate_p_at_its_ends():
    assert approximate_p(np.ones((1, 12)))[0] == 2.0**-12
    assert approximate_p(-np.ones((1, 12)))[0] == approximate_p(np.zeros((1, 12)))[0] == 1.0
    assert approximate_p(np.r_[np.ones(12), np.zeros(9)][None])[0] == 2.0**-12


@pytest.mark.parametrize("completions", [K, BANK * K])
def test_the_noise_of_a_variance_a_mean_over_pairs_is_its_closed_form(completions):
    """The sample variance is the mean of (x - y)^2 / 2 over pairs; of normal draws its variance is 2 / (n - 1)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, K))
    pseudo = K * x.var(axis=1, ddof=1)[:, None] - (K - 1) * np.stack(
        [np.delete(x, i, axis=1).var(axis=1, ddof=1) for i in range(K)], axis=1
    )
    influence = pseudo - pseudo.mean(axis=1, keepdims=True)
    pairs = np.stack([x[:, i : i + 2].var(axis=1, ddof=1) for i in range(0, K, 2)])[None]
    halves = np.stack([x[:, :4].var(axis=1, ddof=1), x[:, 4:].var(axis=1, ddof=1)])[None]
    pilot = Pilot(
        "v", "x", x.var(axis=1), influence, 1500, factors=noise_factors(x.var(axis=1, ddof=1), influence, pairs, halves)
    )
    drawn = pilot.draws(completions, rng)
    assert math.sqrt((drawn**2).mean()) == pytest.approx(math.sqrt(2 / (completions - 1)), rel=0.1)
    if completions == K:
        assert math.sqrt((pilot.noise**2).mean()) == pytest.approx(math.sqrt(2 / (K - 1)), rel=0.1)
        assert math.sqrt((influence**2).mean() / (K - 1)) > 1.05 * math.sqrt(2 / (K - 1))  # the jackknife alone


def batch(k=K, p=20):
    rng = np.random.default_rng(1)
    probes = tuple(Probe(f"p{i}", f"{i}?", "xy"[i % 2]) for i in range(p))
    words = [f"w{j}" for j in range(30)]
    return SampleBatch(
        0, probes, tuple(tuple(" ".join(rng.choice(words, rng.integers(2, 30))) for _ in range(k)) for _ in probes)
    )


def test_a_pilot_of_a_mean_over_completions_has_their_deviations():
    found = {p.domain: p for p in pilots(batch(), ["length"])}
    assert set(found) == {"x", "y", "all"}
    lengths = np.array([[len(text.split()) for text in row] for row in batch().texts], dtype=float)
    expected = lengths - lengths.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found["all"].influence, expected, atol=1e-9)
    np.testing.assert_allclose(found["y"].influence, expected[1::2], atol=1e-9)
    np.testing.assert_allclose(found["all"].values, lengths.mean(axis=1), atol=1e-9)
    assert found["all"].factors == pytest.approx((1, 1), rel=0.2)
    noise = lengths.std(axis=1, ddof=1) / math.sqrt(K)
    np.testing.assert_allclose(found["all"].noise / found["all"].factors[0], noise, atol=1e-9)


@pytest.mark.parametrize("metric", ["tfidf_distance", "distinct_2"])
def test_the_noise_of_a_pilot_is_that_of_fresh_draws(metric):
    """Against values of fresh batches of the same source. Where one depends on K, the jackknife is too large."""
    [pilot] = [p for p in pilots(batch(p=60), [metric]) if p.domain == "all"]
    rng, words = np.random.default_rng(2), [f"w{j}" for j in range(30)]
    probes = tuple(Probe(f"p{i}", f"{i}?") for i in range(300))
    texts = tuple(tuple(" ".join(rng.choice(words, rng.integers(2, 30))) for _ in range(K)) for _ in probes)
    drawn = SampleBatch(0, probes, texts)
    fresh = evaluate(METRICS[metric], MetricContext(drawn)).values
    assert 0.8 < math.sqrt((pilot.noise**2).mean()) / fresh.std() < (1.25 if metric == "tfidf_distance" else 1.5)


def test_a_pilot_of_a_pooled_statistic_and_of_what_has_no_values():
    found = {(p.metric, p.domain): p for p in pilots(batch(), ["format_dominance", "pass_at_1", "nobody_knows"])}
    assert found["format_dominance", "x"].pooled
    assert found["format_dominance", "x"].influence.shape == (1, K)
    assert found["pass_at_1", "x"].values.size == 0
    assert ("nobody_knows", "x") not in found
    with pytest.raises(ConfigError, match="at least 3 completions"):
        pilots(batch(k=2), ["length"])


def test_without_noise_a_screen_finds_what_is_just_above_its_limit():
    still = Pilot("tfidf_distance", "x", np.full(16, 0.5), np.zeros((16, K)), 16)
    rules = [fall("20%"), fall("20%", severity="critical")]
    for rule in rules:
        [cell] = plan_rules([rule], [still], evaluations=20).cells
        assert cell.smallest == pytest.approx(0.2, abs=0.004)
        assert cell.false_alarm == cell.confirmations == 0
        assert cell.delay == rule.hold - 1


def test_false_alarms_of_a_screen_against_their_closed_form():
    """Given the baseline's error b, each of T evaluations falls below (1 - by) (m + b) with the same chance."""
    pilot, by, n, sd, t = normal(), 0.1, 24, 0.08, 20
    b = np.linspace(-6, 6, 4001)
    chance = norm.cdf(((1 - by) * (0.6 + b * sd / math.sqrt(n)) - 0.6) / (sd / math.sqrt(n)))
    weights = norm.pdf(b) / norm.pdf(b).sum()
    expected = float((weights * (1 - (1 - chance) ** t)).sum())
    assert 0.02 < expected < 0.5
    cell = plan_rules([fall(for_=1)], [pilot], evaluations=t, runs=4000).cells[0]
    assert cell.false_alarm == pytest.approx(expected, abs=0.03)
    assert math.isnan(cell.alpha)


def test_confirmed_alarms_keep_to_alpha_and_a_smaller_share_finds_less():
    pilot = normal(p=24)
    rules = RuleSet((fall("5%", tolerate="0%", severity="critical"),), alpha=0.05)
    cell = plan_rules(rules, [pilot], evaluations=100, runs=1000).cells[0]
    assert cell.alpha == 0.05
    assert 0.005 < cell.false_alarm < 0.07
    assert 1 < cell.confirmations <= CONFIRMATIONS
    assert cell.completions == pytest.approx(cell.confirmations * 24 * BANK * K)
    tight = plan_rules(RuleSet(rules.rules, alpha=0.005), [pilot], evaluations=100).cells[0]
    assert tight.smallest > plan_rules(rules, [pilot], evaluations=100).cells[0].smallest


def test_power_against_runs_judged_by_the_exact_test():
    rule, sd, drop, runs = fall("5%", tolerate="5%", evidence="confirm", for_=1), 0.08, 0.11, 300
    rng, p = np.random.default_rng(3), 24
    found = 0
    for _ in range(runs):
        base = 0.6 + rng.normal(0, sd / math.sqrt(p))
        bank = 0.6 + rng.normal(0, sd / 2, p)
        allowed, wait, attempt, share = 0, 0, 0, 0.05
        for t in range(1, 31):
            if 0.6 * (1 - drop) + rng.normal(0, sd / math.sqrt(p)) >= 0.95 * base or t < allowed or attempt == 8:
                continue
            attempt += 1
            d = 0.95 * bank - (0.6 * (1 - drop) + rng.normal(0, sd / 2, p))
            if sign_flip(d, alpha=level(share, attempt), seed=t).p <= level(share, attempt):
                found += 1
                break
            wait = max(3, 2 * wait)
            allowed = t + wait
    predicted = power(rule, normal(p), -drop, share=0.05, evaluations=30, start=1)
    assert 0.5 < found / runs < 0.99
    assert predicted == pytest.approx(found / runs, abs=0.1)


@pytest.mark.parametrize("hold", [1, 2])
@pytest.mark.parametrize("kind", ["drop", "rise"])
def test_simulated_runs_ask_and_wait_as_the_engine_does(hold, kind):
    rule = Rule("r", metric="m", domain="x", rule=kind, by="4%", tolerate="1%", evidence="confirm", for_=hold)
    runs = Runs(rule, normal(16, 0.1), 0.05, (40, 25, CONFIRMATIONS), np.random.default_rng(5))
    change = -0.08 if kind == "drop" else 0.08
    seen = runs.watch(change, start=10)
    fired = []
    for run in range(25):
        alarms, attempt, at = Alarms([rule]), 0, math.inf
        for step in range(41):
            size = 1 + change * (step >= 10)
            value = runs.base[run] if step == 0 else 0.6 * size + runs.screen[run, step - 1]
            measured, verdicts = [Measurement(step, "x", "m", value)], []
            for _ in alarms.asks(step, measured):
                now, bank, attempt = 0.6 * size + runs.fresh[run, attempt], runs.bank[run], attempt + 1
                d = (bank - now if kind == "drop" else now - bank) - 0.01 * bank
                sure = approximate_p(d[None])[0] <= level(0.05, attempt)
                verdicts.append(
                    Verdict(step, "r", "x", rule.claim, "confirmed" if sure else "refuted", attempt=attempt)
                )
            if any(event.state == "firing" for event in alarms.observe(step, measured, verdicts)):
                at = step
                break
        fired.append(at)
        assert seen.confirmations[run] == attempt
    assert seen.fired.tolist() == fired
    assert 3 < sum(map(math.isfinite, fired)) < 25


def test_what_cannot_be_planned_says_why():
    rules = [
        Rule("gone", metric="tfidf_distance", rule="absent"),
        Rule("other", metric="vendi", rule="drop", by="10%"),
        Rule("pooled", metric="format_dominance", rule="rise", by=0.2, severity="critical"),
    ]
    pooled = Pilot("format_dominance", "x", np.array([0.5]), np.zeros((1, K)), 16, pooled=True)
    gone, other, third = plan_rules(rules, [normal(), pooled], evaluations=5).cells
    assert "missing values" in gone.reason
    assert other.reason == "the pilot has no vendi in x"
    assert "means over prompts only" in third.reason
    assert third.false_alarm == 0
    with pytest.raises(ConfigError, match="at least one evaluation"):
        plan_rules(rules, [normal()], evaluations=0)
    stuck = Pilot("effective_formats", "x", np.array([1.0]), np.zeros((1, K)), 16, pooled=True, bounds=(1, math.inf))
    cell = plan_rules([Rule("n", metric="effective_formats", rule="drop", by="40%")], [stuck]).cells[0]
    assert math.isnan(cell.smallest)  # nothing falls below its lowest value


def test_a_plan_says_when_confirmations_would_run_out():
    rules = RuleSet(tuple(fall("5%", severity="critical", name=f"r{i}") for i in range(6)))
    plan = plan_rules(rules, [normal()], evaluations=100, runs=100)
    assert sum(cell.confirmations for cell in plan.cells) > 8
    assert any("a run has 8: none may be left" in line for line in plan_lines(plan, rules))
    few = RuleSet(rules.rules, confirmations=99)
    assert not any("none may be left" in line for line in plan_lines(plan, few))


def test_the_command(tmp_path, capsys):
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "alarms:\n- {name: short, metric: length, rule: drop, by: 40%}\n"
        "- {name: alike, metric: tfidf_distance, domain: all, rule: drop, by: 20%, severity: critical}",
        "utf-8",
    )
    history = History.create(tmp_path / "run", probes=batch().probes)
    Monitor([METRICS["length"]], history=history).observe(batch(), health={"sample_seconds": 16.0})
    assert main(["rules", "plan", str(rules), "--pilot", str(tmp_path / "run"), "--evaluations", "10"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines()[1:4]] == [
        ["short", "x", "10"],
        ["short", "y", "10"],
        ["alike", "all", "20"],
    ]
    assert "1,760 completions for 11 evaluations at K = 8; for confirmations 640 once" in out
    assert "at 0.1 s a completion" in out
    file = tmp_path / "c.jsonl"
    rows = [
        {"prompt": p.text, "domain": p.domain, "completions": t}
        for p, t in zip(batch().probes, batch().texts, strict=True)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert main(["rules", "plan", str(rules), "--pilot", str(file), "--alpha", "0.01", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["alpha"], plan["evaluations"], len(plan["cells"])) == (0.01, 20, 3)
    assert main(["rules", "plan", "defaults", "--pilot", str(tmp_path / "none.jsonl")]) == 2
    History.create(tmp_path / "empty", probes=()).append(Evaluation(0, ()))
    assert main(["rules", "plan", "defaults", "--pilot", str(tmp_path / "empty")]) == 2
    assert "has no evaluation yet" in capsys.readouterr().err
    assert read_pilot(tmp_path / "run")[1] == pytest.approx(16 / 160)


def test_the_completions_of_a_confirmation_are_those_of_the_run():
    pilot, rule = normal(sd=0.15, p=24), fall("5%", evidence="confirm")

    def cell(confirm_k):
        return plan_rules(RuleSet((rule,), confirm_k=confirm_k), [pilot]).cells[0]

    assert repr(cell(BANK * K)) == repr(cell(None))
    assert cell(2 * BANK * K).completions > 1.5 * cell(None).completions > 0
    assert cell(4 * BANK * K).smallest < cell(K).smallest
