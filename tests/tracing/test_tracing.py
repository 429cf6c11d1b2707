"""Real checkpoints: failures, tokenizers, adapters, reasoning, chat, resuming after a kill, workers, the page."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from dataclasses import replace

import pytest

import divmon
from divmon.errors import ConfigError, HistoryError
from divmon.reasoning import answer, answers
from divmon.records import SampleBatch
from divmon.tracing import sampling, weights
from divmon.tracing.lineage import Checkpoint, Lineage

FEW = {"metrics": ["tfidf_distance", "effective_formats", "token_entropy"], "k": 4, "max_new_tokens": 24}


def plain(found):
    return json.dumps(found.to_json(), sort_keys=True)


@pytest.fixture(scope="module")
def traced(checkpoints, tmp_path_factory):
    """A trace in which one checkpoint is missing and one has no tokenizer."""
    from divmon.demo import sums

    rows = [
        {"id": s.prompt, "prompt": s.prompt, "gold": str(s.answer), "domain": "easy" if s.a < 5 else "hard"}
        for s in sums.prompts()[::9]
    ]
    lineage = {
        "base": checkpoints["base"],
        "sft": checkpoints["sft"],
        "gone": "./not/here",
        "rl": {"source": checkpoints["rl"], "parent": "gone"},
    }
    held = []
    load = sampling.load_model

    def watched(*args, **kwargs):
        gc.collect()
        assert not [one for one in held if one() is not None], "two checkpoints in memory"
        model = load(*args, **kwargs)
        held.append(weakref.ref(model))
        return model

    sampling.load_model = watched
    try:
        out = tmp_path_factory.mktemp("out")
        quality = lambda probe, text: float(sums.is_correct(text, int(probe.gold)))  # noqa: E731
        found = divmon.trace(lineage, rows, out=out, quality=quality, **FEW)
        again = divmon.trace(lineage, rows, out=out, quality=quality, **FEW)
    finally:
        sampling.load_model = load
    assert len(held) == 3, "a checkpoint that is on disk was loaded again"
    assert plain(found) == plain(again)
    return found


def test_the_failed_one_is_named_and_the_others_go_on(traced):
    assert traced.failed == ("gone",)
    assert "There is no folder" in traced.checkpoints[2].failure
    series = traced.get("tfidf_distance")
    assert [stage.name for stage in series.stages] == ["base", "sft", "rl"]
    assert series.stage("rl").since == "sft"  # its parent failed: the nearest ancestor stands in
    assert series.blames[0].branch == ("base", "sft", "rl")
    assert series.blames[0].stage == "sft"
    assert series.stage("sft").change_high < 0
    assert "gone failed and is left out: There is no folder" in traced.table()


def test_the_tokenizer_of_the_base_stands_in_and_is_said(traced):
    assert "it has no tokenizer; that of" in traced.checkpoints[3].notes[0]
    assert not traced.notes  # the same tokenizer and template everywhere


def test_every_stage_is_split_since_its_parent_and_since_the_base(traced):
    assert [(s.name, s.since, s.domain) for s in traced.splits if s.domain == "all"] == [
        ("sft", "base", "all"), ("rl", "sft", "all"), ("rl", "base", "all"),
    ]  # fmt: skip
    found = traced.split("sft")
    assert found.metric == "tfidf_distance"
    assert found.n > 5
    assert found.narrowing + found.benign == pytest.approx(1, abs=1e-12)
    before, good, now, good_now = found.distances
    assert found.narrowing == pytest.approx((good - good_now) / (before - now), abs=1e-12)


def test_the_numbers_are_those_of_measuring_the_completions_by_themselves(traced, checkpoints, packaged):
    from divmon.metrics import METRICS
    from divmon.monitor import Monitor
    from divmon.samplers.generate import GenerateSampler

    loaded = weights.load_model(
        Checkpoint("sft", str(checkpoints["sft"])), Lineage.of({"a": "a", "b": "b"}), dtype="auto",
        device=weights.this_device(several=False),
    )  # fmt: skip
    from divmon.demo import sums

    rows = [{"id": s.prompt, "prompt": s.prompt, "domain": "easy" if s.a < 5 else "hard"} for s in sums.prompts()[::9]]
    sampler = GenerateSampler(loaded, packaged.load_tokenizer(), 4, divmon.Settings(max_new_tokens=24).decoding(1))
    batch = sampler(divmon.ProbeSet.of(rows), step=1)
    seen = Monitor([METRICS["effective_formats"], METRICS["token_entropy"]]).observe(batch)
    for domain in ("easy", "hard"):
        assert traced.value("sft", "effective_formats", domain) == seen.get("effective_formats", domain).value
        entropy = seen.get("token_entropy", domain).value
        assert traced.value("sft", "token_entropy", domain) == pytest.approx(entropy, abs=1e-5)  # stored to 5 decimals


@pytest.mark.parametrize("kind", ["damaged", "cut", "other"])
def test_a_damaged_block_is_drawn_again(kind, checkpoints, rows, tmp_path, caplog):
    lineage = {"base": checkpoints["base"], "sft": checkpoints["sft"]}
    first = divmon.trace(lineage, rows, out=tmp_path, **FEW)
    [path] = (tmp_path / "completions").glob("sft-*/*.gz")
    raw = path.read_bytes()
    other = next((tmp_path / "completions").glob("base-*/*.gz")).read_bytes()
    path.write_bytes({"damaged": raw[:-9] + b"\x00" + raw[-8:], "cut": raw[: len(raw) // 2], "other": b"no"}[kind])
    assert plain(divmon.trace(lineage, rows, out=tmp_path, **FEW)) == plain(first)
    assert "is damaged" in caplog.text
    assert path.read_bytes() == raw != other


def test_completions_outlive_their_weights_and_other_weights_are_drawn_anew(checkpoints, rows, tmp_path):
    import shutil

    shutil.copytree(checkpoints["sft"], tmp_path / "sft")
    lineage = {"base": checkpoints["base"], "sft": tmp_path / "sft"}
    first = divmon.trace(lineage, rows, out=tmp_path / "out", **FEW)
    shutil.rmtree(tmp_path / "sft")
    assert plain(divmon.trace(lineage, rows, out=tmp_path / "out", **FEW)) == plain(first)
    shutil.copytree(checkpoints["rl"], tmp_path / "sft")
    retrained = divmon.trace(lineage, rows, out=tmp_path / "out", **FEW)
    assert plain(retrained) != plain(first)


WORKER = """
import json, os, sys, divmon
lineage, rows, out, more = json.loads(sys.argv[1])
found = divmon.trace(lineage, rows, out=out, **more)
if os.environ["RANK"] == "0":
    print("RESULT " + json.dumps(found.to_json(), sort_keys=True))
"""
MANY = {
    "metrics": ["tfidf_distance", "effective_formats", "token_entropy"],
    "k": 40,
    "max_new_tokens": 24,
    "batch_size": 20,
}


def on_two_workers(lineage, rows, out):
    """What `accelerate launch` prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = out.with_suffix(".py")
    script.write_text(WORKER)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]  # fmt: skip
    given = json.dumps([{name: str(path) for name, path in lineage.items()}, rows, str(out), MANY])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *launch, str(script), given], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [printed] = re.findall(r"RESULT (.*)", done.stdout)
    return printed


def test_killed_and_resumed_and_on_two_workers_the_numbers_are_the_same(checkpoints, rows, tmp_path):
    lineage = {"base": checkpoints["base"], "sft": checkpoints["sft"]}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = multiprocessing.get_context("fork").Process(
        target=divmon.trace, args=(lineage, rows), kwargs={"out": killed, **MANY}
    )
    process.start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(killed.rglob("*.gz"))) < 2:  # the first checkpoint has six blocks
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert 2 <= len(list(killed.rglob("*.gz"))) < 12
    found = divmon.trace(lineage, rows, out=killed, **MANY)
    assert json.loads(on_two_workers(lineage, rows, whole)) == json.loads(plain(found))
    files = [sorted(p.read_bytes() for p in folder.rglob("*.gz")) for folder in (killed, whole)]
    assert len(files[0]) == 12
    assert files[0] == files[1]


def test_adapters_are_put_on_what_they_name_or_on_what_is_named(checkpoints, rows, tmp_path, packaged):
    peft = pytest.importorskip("peft")
    import torch

    base = packaged.load_model()
    base.name_or_path = str(checkpoints["base"])
    made = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5)
    made.peft_config["default"].base_model_name_or_path = str(checkpoints["base"])
    made.save_pretrained(tmp_path / "adapter")
    made.merge_and_unload().save_pretrained(tmp_path / "merged")
    lineage = {
        "base": checkpoints["base"],
        "adapter": tmp_path / "adapter",
        "merged": {"source": str(tmp_path / "merged"), "parent": "base"},
        "elsewhere": {"source": str(tmp_path / "adapter"), "on": "base", "parent": "base"},
    }
    found = divmon.trace(lineage, rows, out=tmp_path / "out", **FEW)
    assert not found.failed
    kept = [found.get("tfidf_distance").stage(name).retained for name in ("adapter", "merged", "elsewhere")]
    assert kept[0] == kept[2]
    assert kept[0] == pytest.approx(kept[1], rel=0.05)
    assert kept[0] != pytest.approx(100, abs=0.5)


def test_answers_without_their_reasoning():
    assert answer("<think>a</think>\n\n7") == "7"
    assert answer("<think>a</think>x<think>b</think>7") == "x7"
    assert answer("a</think>7") == "7"
    assert answer(" 7 ") == " 7 "
    assert answer("<think>a</think>") == ""
    assert answer("<think>" * 50_000) is None
    assert answer("</think>" + "<think>" * 50_000) is None
    assert answer("I was cut", inside=True) is None
    probes = divmon.ProbeSet.of(["?"]).probes
    batch = SampleBatch(0, probes, (("<think>a</think>7", "<think>a", "8"),), finished=((True, False, True),))
    kept, cut = answers(replace(batch, token_ids=(((1,), (2,), (3,)),)), inside=False)
    assert (kept.texts, kept.finished, kept.token_ids, cut) == ((("7", "8"),), ((True, True),), None, 1)
    bare = replace(batch, texts=(("7", "8", "9"),))
    assert answers(bare, inside=False) == (bare, 0)


def thinking(texts):
    """Opens checkpoints that think: checkpoint to the texts of every prompt."""

    def draw(checkpoint):
        def sample(probes, *, step):
            return SampleBatch(step, probes.probes, (tuple(texts[checkpoint.name]),) * len(probes))

        return sample

    return draw


def test_reasoning_is_stripped_or_kept_and_a_cut_one_is_no_answer(tmp_path):
    texts = {
        "base": ["<think>a b</think>one", "<think>c d</think>two", "<think>e</think>three", "four"],
        "rl": ["<think>p</think>one", "<think>q</think>one", "<think>r</think>one", "<think>never ends"],
    }
    probes = [f"prompt {i}" for i in range(6)]
    same = {"lineage": {"base": "b", "rl": "r"}, "probes": probes, "out": tmp_path, "k": 4, "draw": thinking(texts)}
    metrics = ["unique_fraction"]
    stripped = divmon.trace(**same, metrics=metrics)
    assert stripped.value("rl", "unique_fraction", "default") == pytest.approx(1 / 3)
    assert stripped.checkpoints[1].cut == 6
    assert "6 of 24 completions were cut while reasoning" in stripped.table()
    kept = divmon.trace(**same, metrics=metrics, reasoning="keep")
    assert kept.value("rl", "unique_fraction", "default") == 1.0
    both = [{"name": "base", "source": "b"}, {"name": "rl", "source": "r", "reasoning": "keep"}]
    mixed = divmon.trace(**{**same, "lineage": both}, metrics=metrics)
    assert mixed.value("rl", "unique_fraction", "default") == 1.0
    with pytest.raises(ConfigError, match="Did you mean 'strip'"):
        divmon.trace(**same, reasoning="stripp")


def test_an_empty_block_is_put_before_every_answer(checkpoints, rows, tmp_path, packaged):
    """The tokens that the model is shown, with and without a template that opens the block itself."""
    tokenizer = packaged.load_tokenizer()
    lineage = Lineage.of({"base": checkpoints["base"], "sft": checkpoints["sft"]})
    asked = sampling.Asked(2, divmon.Settings(max_new_tokens=8).decoding(8))
    model = sampling.open_checkpoint(lineage.base, lineage, asked, suppress=True, several=False)
    [probe] = divmon.ProbeSet.of(["What is 3+4?"]).probes
    shown = tokenizer.decode(model._written(probe).token_ids)
    plain_ids = tokenizer("What is 3+4?")["input_ids"]
    block = tokenizer("<think>\n</think>\n", add_special_tokens=False)["input_ids"]
    assert list(model._written(probe).token_ids)[-len(block) :] == block
    assert len(model._written(probe).token_ids) >= len(plain_ids)
    assert "What is 3+4?" in shown
    batch = model(divmon.ProbeSet((probe,)), step=0)
    assert batch.probes == (probe,)
    assert batch.k == 2
    found = divmon.trace(
        [{"name": "base", "source": str(checkpoints["base"])},
         {"name": "quiet", "source": str(checkpoints["base"]), "reasoning": "empty"}],
        rows, out=tmp_path, **FEW,
    )  # fmt: skip
    assert [seen.reasoning for seen in found.checkpoints] == ["strip", "empty"]
    assert "quiet and its parent base are shown their prompts in different forms" in found.notes[0]


def test_templates_and_tokenizers_that_differ_are_said(checkpoints, rows, tmp_path, packaged):
    import shutil

    shutil.copytree(checkpoints["sft"], tmp_path / "chat")
    tokenizer = packaged.load_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}= "
    tokenizer.add_tokens(["zz"])
    tokenizer.save_pretrained(tmp_path / "chat")
    chats = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    found = divmon.trace({"base": checkpoints["base"], "chat": tmp_path / "chat"}, chats, out=tmp_path / "out", **FEW)
    assert not found.failed
    assert "it has no chat template: chat messages were put to it as plain text" in found.checkpoints[0].notes
    assert [note.split(":")[0] for note in found.notes] == [
        "chat and its parent base have different tokenizers",
        "chat and its parent base are shown their prompts in different forms (chat template, reasoning)",
    ]


def test_out_of_memory_and_a_broken_sampler_cost_one_checkpoint(rows, tmp_path):
    import torch

    def draw(checkpoint):
        if checkpoint.name == "large":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")

        def sample(probes, *, step):
            if checkpoint.name == "broken":
                raise ValueError("no weights for me")
            if checkpoint.name == "few":
                return SampleBatch(step, probes.probes, (("a",),) * len(probes))
            return SampleBatch(step, probes.probes, (("a b", "c d"),) * len(probes))

        return sample

    names = ["base", "large", "broken", "few", "last"]
    found = divmon.trace(dict.fromkeys(names, "x"), rows, out=tmp_path, draw=draw, k=2, metrics=["tfidf_distance"])
    assert found.failed == ("large", "broken", "few")
    failures = {seen.name: seen.failure for seen in found.checkpoints}
    assert failures["large"].startswith("out of memory while it was loaded or sampled")
    assert failures["broken"] == "ValueError: no weights for me"
    assert "fewer than 2 completions of the prompt" in failures["few"]
    assert found.get("tfidf_distance").stage("last").retained == 100.0
    with pytest.raises(HistoryError, match=r"No checkpoint could be sampled\. broken: ValueError"):
        divmon.trace({"broken": "x", "large": "y"}, rows, out=tmp_path / "none", draw=draw, k=2)
    headless = divmon.trace(
        {"broken": "x", "last": "y"}, rows, out=tmp_path, draw=draw, k=2, metrics=["tfidf_distance"]
    )
    assert headless.series == ()
    assert "No stage can be named" in headless.table()
    assert "the base broken failed" in headless.page()
