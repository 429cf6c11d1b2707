"""Levers in simulations small enough to know the answer, held against reference figures.

    python tests/benchmarks/toys.py            # about three minutes; prints both, and how far apart they are

Two toys, since there are two losses. A *bandit* of 20 answers, 5 of them correct with prior masses .20 .10 .05 .02 .01:
breadth among correct answers, as the effective number of them (exponential of entropy) where pass@1 first reaches a
level. *Coverage* of 200 prompts of very different difficulty that share one sharpness: pass@64 on the hard ones, where
mean pass@1 first reaches a level. Every lever is divmon's own function; only the world around it is here. They rank
mechanisms; they do not predict gains on language models.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from divmon.mitigations.diversity import factors, shaped
from divmon.mitigations.entropy import controlled
from divmon.mitigations.gate import gate_weights

GROUP = 8
MASSES = (0.20, 0.10, 0.05, 0.02, 0.01)
WRONG = 15
# lever -> (at pass@1 .8, at .9, at the end, pass@1 at the end); None where the figure is not known
BANDIT = {
    "none": (1.68, 1.36, 1.02, 0.997),
    "diversity_reward": (2.44, 2.45, 2.55, 0.957),
    "diversity_reward, scaled": (2.42, 2.46, 3.06, 0.989),
    "entropy_band": (1.68, 2.73, 3.46, 0.953),
}
COVERAGE = {"none": (0.075, 0.031), "gate": (0.415, 0.508), "entropy_band": (0.075, 0.076)}


@dataclass(frozen=True)
class Figure:
    """A mean over simulated runs with its standard error."""

    value: float
    error: float

    def fits(self, reference: float) -> bool:
        """Within 10 %, or three standard errors of a difference (the reference is a mean over as many runs)."""
        return abs(self.value - reference) <= max(0.1 * reference, 3 * np.sqrt(2) * self.error)


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def advantages(rewards: np.ndarray, *, scaled: bool) -> np.ndarray:
    """Rewards about the mean of their group, over its standard deviation where `scaled`, as GRPO has them."""
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4) if scaled else centred


def draw(rng: np.random.Generator, policy: np.ndarray) -> np.ndarray:
    """GROUP answers for each row of `policy`."""
    edges = policy.cumsum(axis=1)[:, None, :]
    found = (rng.random((len(policy), GROUP, 1)) > edges).sum(axis=-1)
    return np.minimum(found, policy.shape[1] - 1)


def policy_gradient(policy: np.ndarray, answers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the group of weight times the gradient of log p(answer) by the logits."""
    gradient = -weights.sum(axis=1, keepdims=True) * policy
    np.add.at(gradient, (np.arange(len(policy))[:, None], answers), weights)
    return gradient / GROUP


def entropy_gradient(policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropy of each row, and its gradient by the logits."""
    logs = np.log(np.maximum(policy, 1e-30))
    entropy = -(policy * logs).sum(axis=1)
    return entropy, -policy * (logs + entropy[:, None])


def bandit(lever: str, *, runs: int, steps: int, seed: int = 0, rate: float = 0.05) -> np.ndarray:
    """float[steps / 5, 2, runs]: pass@1 and the effective number of correct answers of independent runs."""
    prior = np.array([*MASSES, *([(1 - sum(MASSES)) / WRONG] * WRONG)])
    logits = np.tile(np.log(prior / prior.sum()), (runs, 1))
    rng, curve = np.random.default_rng(seed), []
    coefficients, bonus = np.zeros(runs), np.zeros(runs)
    for step in range(steps):
        policy = softmax(logits)
        answers = draw(rng, policy)
        rewards = (answers < len(MASSES)).astype(float)
        if lever.startswith("diversity_reward"):
            rewards = shaped(rewards, factors(answers, np.ones_like(answers, dtype=bool)), weight=1.0)
        scaled = lever != "diversity_reward"
        change = policy_gradient(policy, answers, advantages(rewards, scaled=scaled))
        if lever == "entropy_band":
            entropy, upward = entropy_gradient(policy)
            change += bonus[:, None] * upward
            band = {"low": 1.5, "high": 1.5, "step": 0.005, "most": 1.0}
            coefficients = np.array([controlled(c, h, **band) for c, h in zip(coefficients, entropy, strict=True)])
            bonus = np.where(entropy <= 1.5, coefficients, 0.0)
        logits = logits + rate * change
        if step % 5 == 4:
            correct = softmax(logits)[:, : len(MASSES)]
            mass = correct.sum(axis=1)
            curve.append((mass, np.exp(entropy_gradient(correct / mass[:, None])[0])))
    return np.array(curve)


def reached(curve: np.ndarray, level: float) -> Figure:
    """The effective number where each run first reaches pass@1 of `level`, over the runs that do."""
    above = curve[:, 0] >= level
    hit = above.any(axis=0)
    values = curve[above.argmax(axis=0), 1, np.arange(curve.shape[2])][hit]
    return Figure(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def at_the_end(curve: np.ndarray, row: int) -> Figure:
    values = curve[-1, row]
    return Figure(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


@dataclass
class World:
    """200 prompts with 20 answers each, the first one correct; every prompt has logits of its own, and all are
    sharpened by one number that training moves too."""

    rng: np.random.Generator
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        chance = np.exp(self.rng.uniform(np.log(0.002), np.log(0.9), 200))
        others = self.rng.dirichlet(np.full(19, 0.5), 200) * (1 - chance)[:, None]
        self.hard = chance < 0.02
        self.logits = np.log(np.maximum(np.column_stack((chance, others)), 1e-9))

    def solved(self) -> np.ndarray:
        return softmax(self.sharpness * self.logits)[:, 0]


def coverage(lever: str, *, steps: int, rng: np.random.Generator) -> np.ndarray:
    """float[steps / 10, 2]: mean pass@1, and pass@64 on the hard prompts."""
    world, gate = World(rng), gate_weights(GROUP)
    coefficient, bonus, curve = 0.0, 0.0, []
    for step in range(steps):
        chosen = rng.choice(200, 32, replace=False)
        base = world.logits[chosen]
        policy = softmax(world.sharpness * base)
        answers = draw(rng, policy)
        rewards = (answers == 0).astype(float)
        weights = advantages(rewards, scaled=True)
        if lever == "gate":
            weights = weights * gate[rewards.sum(axis=1).astype(int)][:, None]
        change = policy_gradient(policy, answers, weights)
        if lever == "entropy_band":
            rows, upward = entropy_gradient(policy)
            entropy = float(rows.mean())
            bonus = coefficient if entropy <= 1.0 else 0.0
            change += bonus * upward
            coefficient = controlled(coefficient, entropy, low=1.0, high=1.0, step=0.005, most=1.0)
        world.logits[chosen] += 0.1 * world.sharpness * change
        world.sharpness = max(0.05, world.sharpness + 0.02 * float((change * base).sum(axis=1).mean()))
        if step % 10 == 9:
            solved = world.solved()
            curve.append((solved.mean(), (1 - (1 - solved[world.hard]) ** 64).mean()))
    return np.array(curve)


def covered(curves: np.ndarray, level: float) -> Figure:
    """pass@64 on hard prompts where the mean curve first reaches pass@1 of `level`; the error is that over runs."""
    at = int(np.argmax(curves.mean(axis=0)[:, 0] >= level))
    values = curves[:, at, 1]
    return Figure(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def line(name: str, what: str, found: Figure, reference: float) -> str:
    sign = "" if found.fits(reference) else "   DIFFERS"
    return f"{name:<26} {what:<24} {found.value:6.3f} ± {found.error:.3f}   reference {reference:.3f}{sign}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="of the bandit")
    parser.add_argument("--worlds", type=int, default=6, help="of the coverage toy")
    args = parser.parse_args()
    print("bandit: effective number of correct answers")
    for name, (at8, at9, end, quality) in BANDIT.items():
        curve = bandit(name, runs=args.runs, steps=3000)
        print(line(name, "at pass@1 .8", reached(curve, 0.8), at8))
        print(line(name, "at pass@1 .9", reached(curve, 0.9), at9))
        print(line(name, "after 3000 steps", at_the_end(curve, 1), end))
        print(line(name, "pass@1 after 3000 steps", at_the_end(curve, 0), quality), flush=True)
    print("coverage: pass@64 on hard prompts")
    for name, (at40, at55) in COVERAGE.items():
        steps = 4000 if name == "gate" else 1500
        rng = np.random.default_rng(0)  # one stream through all worlds, as the reference has it: the same worlds
        curves = np.array([coverage(name, steps=steps, rng=rng) for _ in range(args.worlds)])
        print(line(name, "at pass@1 .40", covered(curves, 0.40), at40))
        print(line(name, "at pass@1 .55", covered(curves, 0.55), at55), flush=True)


if __name__ == "__main__":
    main()
