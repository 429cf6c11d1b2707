"""Critics in this process: the policy, another model, a function; and what may name one."""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from divmon.errors import ConfigError, SamplingError
from divmon.records import Probe
from divmon.resampling.base import Attempt, Request
from divmon.resampling.critics import EndpointCritic, FunctionCritic, ModelCritic, PolicyCritic, as_critic
from divmon.resampling.writers import ModelWriter

CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
PROMPTS = ["1+1", "the sum of 3 and 4", "9", "1+1"]


def asked(prompts: Any = PROMPTS) -> list[Request]:
    return [Request(Attempt(Probe(str(i), "2+2="), f"answer {i}"), prompt) for i, prompt in enumerate(prompts)]


def streams() -> Any:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.fixture(scope="module")
def folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("critic")
    tiny.gpt2(seed=4).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


class Scripted:
    """A writer that remembers what it is asked."""

    name = "scripted"

    def __init__(self, texts: Any = None) -> None:
        self.texts, self.calls = texts, []

    def write(self, prompts: Any, *, temperature: float, keys: Any) -> Any:
        self.calls.append((list(prompts), temperature, list(keys)))
        if isinstance(self.texts, Exception):
            raise self.texts
        return self.texts or [f"no: {p}" for p in prompts]

    def logprob(self, prompts: Any, texts: Any) -> Any:
        raise AssertionError


# ---- the policy


def test_the_policy_is_asked_the_prompts_at_temperature_nought() -> None:
    writer = Scripted()
    critic = PolicyCritic(writer)
    assert critic(asked(), key=0) == [f"no: {p}" for p in PROMPTS]
    assert writer.calls[0][:2] == (PROMPTS, 0.0)
    assert critic.name == "scripted"
    assert PolicyCritic(Scripted([" a\n", "", "\ud800", " \t"]))(asked(), key=0) == ["a", None, "\ufffd", None]


def test_keys_are_of_the_prompt_and_the_call_not_of_the_batch() -> None:
    writer = Scripted()
    critic = PolicyCritic(writer, temperature=0.3)
    for requests, key in ((asked(), 0), (asked()[1:], 0), (asked(), 1)):
        critic(requests, key=key)
    first, later, other = (keys for _, _, keys in writer.calls)
    assert len(set(first)) == 4  # equal prompts too
    assert later[:2] == first[1:3]
    assert not set(first) & set(other)


def test_a_policy_that_fails_is_a_divmon_error() -> None:
    with pytest.raises(SamplingError, match="scripted could not write critiques: broken"):
        PolicyCritic(Scripted(RuntimeError("broken")))(asked(), key=0)
    with pytest.raises(SamplingError, match=r"^mine$"):
        PolicyCritic(Scripted(SamplingError("mine")))(asked(), key=0)
    for temperature in (-1, float("nan"), True, "0"):
        with pytest.raises(ConfigError, match="`temperature`"):
            PolicyCritic(Scripted(), temperature=temperature)


def test_the_live_policy_criticises_and_is_left_as_found(tiny: Any) -> None:
    model = tiny.gpt2().train()
    critic = PolicyCritic(ModelWriter(model, tiny.tokenizer(), max_new_tokens=12), temperature=1.0)
    weights, before = tiny.digest(model), streams()
    found = critic(asked(), key=3)
    assert (tiny.digest(model), streams()) == (weights, before)
    assert all(m.training for m in model.modules())
    assert found == critic(asked(), key=3) != critic(asked(), key=4)


# ---- another model


def test_a_model_is_loaded_when_first_asked_and_says_what_its_writer_would(tiny: Any, folder: Path) -> None:
    torch.manual_seed(1)
    critic = as_critic(f"model:{folder}")
    assert isinstance(critic, ModelCritic)
    assert critic._writer is None
    assert critic.name == f"model:{folder}"
    before = streams()
    found = critic(asked(), key=0)
    assert streams() == before
    loaded = critic._writer
    writer = ModelWriter(tiny.gpt2(seed=4), tiny.tokenizer(), max_new_tokens=48)  # half of its window
    assert found == [t.strip() or None for t in writer.write(PROMPTS, temperature=0.0, keys=[0] * 4)]
    critic(asked(), key=0)
    assert critic._writer is loaded
    assert loaded is not None
    assert not any(p.requires_grad for p in loaded._sampler.model.parameters())
    for same in (
        as_critic(folder),
        as_critic({"model": str(folder)}),
        ModelCritic((tiny.gpt2(seed=4), tiny.tokenizer())),
    ):
        assert same(asked(), key=0) == found


def test_questions_take_the_form_the_model_knows(tiny: Any) -> None:
    chat = ({"role": "system", "content": "1"}, {"role": "user", "content": "+1="})
    pair, talks = (tiny.gpt2(), tiny.tokenizer()), {"chat_template": CHAT}
    plain = ModelCritic(pair, max_new_tokens=9)
    assert plain(asked([chat]), key=0) == plain(asked(["1\n+1="]), key=0)
    spoken = ModelCritic(pair, max_new_tokens=9, chat_options=talks)
    assert spoken(asked(["1+1", "9"]), key=0) == plain(asked(["1+1=", "9="]), key=0)


def test_models_that_cannot_be_had(tiny: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for spec, message in {
        f"model:{tmp_path}": "holds no model: there is no config.json",
        f"model:{tmp_path}/none": "There is no folder",
        "model:./none": "There is no folder",
        "model:": "is a name, a folder",
    }.items():
        with pytest.raises(ConfigError, match=message):
            as_critic(spec)
    with pytest.raises(ConfigError, match="`max_new_tokens`"):
        ModelCritic(folder, max_new_tokens=0)
    with pytest.raises(ConfigError, match="pair"):
        ModelCritic((1, 2, 3))
    with pytest.raises(ConfigError, match="no tokenizer"):
        ModelCritic((tiny.gpt2(), None))

    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    loads = []
    from transformers import AutoTokenizer

    inner = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: (loads.append(k), inner(*a, **k))[1])
    critic = ModelCritic(tmp_path)
    with pytest.raises(ConfigError, match=r"Cannot load the critic .* safetensors"):
        critic.check()
    for _ in range(2):  # in the middle of training: no config error, and not loaded again
        with pytest.raises(SamplingError, match="Cannot load the critic"):
            critic(asked(), key=0)
    assert loads == [{"trust_remote_code": False}]


def test_weights_that_are_not_safetensors_or_not_all_there_are_refused(tiny: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny.gpt2()
    for name in ("pickled", "partial"):
        model.save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    weights = tmp_path / "pickled" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "pickled" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ConfigError, match="Cannot load the critic"):
        ModelCritic(tmp_path / "pickled").check()
    weights = tmp_path / "partial" / "model.safetensors"
    kept = {k: v for k, v in load_file(weights).items() if "ln_f" not in k}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"no trained language model: transformer\.ln_f"):
        ModelCritic(tmp_path / "partial").check()


# ---- functions


class Bound:
    def method(self, prompt: str, answer: str) -> str:
        return f"{prompt}{answer}"

    def __call__(self, request: Request) -> str:
        return request.prompt


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda prompt, answer: f"{prompt}{answer}", "2+2=answer 0"),
        (lambda prompt, answer, more=1: f"{prompt}{answer}", "2+2=answer 0"),
        (lambda prompt, answer="": f"{prompt.prompt}", "1+1"),  # one argument is needed
        (lambda *both: "".join(both), "2+2=answer 0"),
        (lambda request, **more: request.attempt.text, "answer 0"),
        (lambda request=None: request.attempt.text, "answer 0"),
        (Bound().method, "2+2=answer 0"),
        (Bound(), "1+1"),
        (functools.partial(lambda suffix, prompt, answer: answer + suffix, "!"), "answer 0!"),
    ],
)
def test_functions_are_called_by_how_many_arguments_they_need(fn: Any, expected: str) -> None:
    assert as_critic(fn)(asked(["1+1"]), key=0) == [expected]


def test_what_a_function_may_return(caplog: pytest.LogCaptureFixture) -> None:
    def mine(request: Request) -> Any:
        value = request.prompt
        if value == "raise":
            raise KeyError("lost")
        return value

    critic = FunctionCritic(mine)
    prompts: Any = [" a ", None, "", 7, "raise", "b\ud800", "raise"]
    with caplog.at_level(logging.WARNING, logger="divmon"):
        assert critic(asked(prompts), key=0) == ["a", None, None, None, None, "b\ufffd", None]
    assert critic.name == "mine"
    assert critic.failures == {
        "it had nothing to say": 1, "it answered with int, not with a text": 1, "KeyError: 'lost'": 2,
    }  # fmt: skip
    assert len(caplog.records) == 3  # each reason once
    assert caplog.records[-1].getMessage() == "divmon: the critic mine: KeyError: 'lost'"


@pytest.mark.parametrize("deadline", [None, 5.0])
def test_a_function_may_draw_without_moving_the_streams(deadline: float | None) -> None:
    def noisy(request: Request) -> str:
        return f"{random.random()} {np.random.rand()} {torch.rand(1)}"

    before = streams()
    assert None not in FunctionCritic(noisy, deadline=deadline)(asked(), key=0)
    assert streams() == before


def test_a_function_that_hangs_is_left_behind() -> None:
    hanging, done = threading.Event(), threading.Event()

    def slow(request: Request) -> str:
        if request.prompt == "9":
            hanging.wait(20)
            done.set()
        return "fine"

    critic = FunctionCritic(slow, deadline=0.3)
    start = time.monotonic()
    assert critic(asked(), key=0) == ["fine", "fine", None, None]
    assert critic(asked(), key=0) == [None] * 4  # still busy: no second thread is started
    assert time.monotonic() - start < 2
    assert critic.failures == {
        "no answer within the deadline of 0.3 s": 2,
        "it is still busy with an earlier request": 1,
    }
    hanging.set()
    assert done.wait(5)
    for _ in range(100):
        if not critic._late:
            break
        time.sleep(0.01)
    assert critic(asked()[:2], key=0) == ["fine", "fine"]


# ---- what names a critic


def test_names_of_critics() -> None:
    policy = Scripted()
    named = as_critic("policy", policy=policy)
    assert isinstance(named, PolicyCritic)
    assert named.name == "scripted"
    endpoint = as_critic("http://localhost:8000/v1#org/m:7b")
    assert isinstance(endpoint, EndpointCritic)
    assert endpoint.name == "endpoint:org/m:7b@localhost:8000"
    told = as_critic({"url": "http://localhost:8000/v1", "model": "org/m:7b", "retries": 0, "options": {"stop": "x"}})
    assert isinstance(told, EndpointCritic)
    assert (told.name, told.retries) == (endpoint.name, 0)
    assert as_critic(named) is named
    assert as_critic(endpoint) is endpoint

    class Own:
        name = "own"

        def __call__(self, requests: Any, *, key: int) -> Any:
            return ["x"] * len(requests)

    own = Own()
    assert as_critic(own) is own


async def coroutine(prompt: str, answer: str) -> str:
    return ""


class Named:
    name = "mine"

    def __call__(self, prompt: str, answer: str) -> str:
        return ""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("policy", "needs a policy here"),
        ("polcy", "Did you mean 'policy'"),
        ("gpt-4o", r"Unknown critic 'gpt-4o'\. A critic is 'policy'"),
        ("Qwen/Qwen3-8B", "Did you mean 'model:Qwen/Qwen3-8B'"),
        ("", "Unknown critic ''"),
        ("http://localhost:8000/v1", "after a '#'"),
        (7, "not int"),
        (None, "not NoneType"),
        (ModelCritic, "the class ModelCritic: pass an instance"),
        (Named(), "Named has a name, but is not called as a critic is"),
        (Scripted(), "not Scripted"),
        (coroutine, "a coroutine is not awaited"),
        (lambda: "", "this one takes"),
        (lambda a, b, c: "", "this one takes"),
        (lambda a, *, b: "", "this one takes"),
        ({"model": "a", "devise": "cpu"}, "Did you mean 'device'"),
        ({}, "needs a `model`"),
    ],
)
def test_anything_else_is_refused_with_what_to_write(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_critic(spec)


def test_a_model_without_its_tokenizer_is_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match=r"Pass \(model, tokenizer\)"):
        as_critic(tiny.gpt2())
    for deadline in (0, float("inf"), float("nan"), "5", True):
        with pytest.raises(ConfigError, match="`deadline`"):
            FunctionCritic(lambda p, a: "", deadline=deadline)
