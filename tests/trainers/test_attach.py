"""One line attaches it; what cannot work is a clear error before training; zero configuration is useful."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

import divmon

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize("name", ["trainer", "sft", "dpo", "grpo"])
def test_zero_configuration_takes_the_trainers_own_prompts(
    tiny: Any, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = tiny.TRAINERS[name](tmp_path, callbacks=[divmon.DiversityCallback()], max_steps=2)
    trainer.train()
    history = divmon.History.read(tmp_path)
    assert 0 < len(history.probes) <= 32
    own = {probe.text for probe in history.probes}
    assert own <= set(tiny.PROMPTS) if name != "trainer" else all(text[0].isdigit() for text in own)
    assert [e.step for e in history.evaluations] == [0, 1, 2]
    series = history.series("tfidf_distance", "train")
    assert (series.values >= 0).all()
    said = capsys.readouterr().out
    assert "set report_to='wandb'" in said
    assert ("quality=" in said) == (name != "grpo")  # GRPO's data has an answer column
    assert "divmon  step 0" in said


def test_watch_is_the_same_as_the_callback(tiny: Any, tmp_path: Path) -> None:
    trainer = tiny.sft(tmp_path)
    callback = divmon.watch(trainer, ["1+1=", "2+2="], every=3, k=2, max_new_tokens=4, sinks=[])
    assert callback in trainer.callback_handler.callbacks
    trainer.train()
    assert [e.step for e in divmon.History.read(tmp_path).evaluations] == [0, 3, 6]


def test_rewards_of_grpo_judge_the_probes(tiny: Any, tmp_path: Path) -> None:
    trainer = tiny.grpo(tmp_path)
    divmon.watch(trainer, quality="rewards", correct_at=-0.6, every=6, k=2, max_new_tokens=8, sinks=[], strict=True)
    trainer.train()
    history = divmon.History.read(tmp_path)
    quality = history.series("mean_quality", "train").values
    lengths = [[-len(text) / 10 for text in row] for row in history.batch(0).texts]
    assert quality[0] == pytest.approx(sum(map(sum, lengths)) / sum(map(len, lengths)))


def test_a_model_without_generate_is_refused_at_construction(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Any, labels: Any = None) -> Any:
            return {"loss": x.sum()}

    rows = Dataset.from_list([{"x": [0.0]}])
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(divmon.ConfigError, match=r"has no generate\(\).*divmon measure"):
        Trainer(Net(), args, train_dataset=rows, callbacks=[divmon.DiversityCallback()])


def test_a_trainer_without_tokenizer_is_refused_at_construction(tiny: Any, tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(divmon.ConfigError, match="processing_class=tokenizer"):
        Trainer(tiny.gpt2(), args, callbacks=[divmon.DiversityCallback()])
    trainer = Trainer(tiny.gpt2(), args)
    with pytest.raises(divmon.ConfigError, match="processing_class=tokenizer"):
        divmon.watch(trainer)


def test_chat_probes_without_a_template_are_refused_before_the_first_step(tiny: Any, tmp_path: Path) -> None:
    chat = [[{"role": "user", "content": "hello"}]]
    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(chat)])
    with pytest.raises(divmon.ConfigError, match="chat template"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_tokenizer_without_pad_token_works(tiny: Any, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=1)
    trainer.data_collator.tokenizer = tiny.tokenizer()
    trainer.processing_class.pad_token = None
    divmon.watch(trainer, ["1+1=", "12+12="], k=2, max_new_tokens=4, sinks=[], strict=True)
    trainer.train()
    assert trainer.processing_class.pad_token is None


def test_a_rule_on_a_domain_no_probe_has_is_refused(tiny: Any, tmp_path: Path) -> None:
    rule = {"name": "r", "metric": "tfidf_distance", "domain": "creativ", "rule": "drop", "by": "10%"}
    with pytest.raises(divmon.ConfigError, match="creativ"):
        divmon.DiversityCallback("creative", alarms=[rule])
    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(alarms=[rule])])
    with pytest.raises(divmon.ConfigError, match="train"):
        trainer.train()


def test_data_without_prompts_falls_back_to_the_creative_pack(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = tiny.sft(tmp_path, max_steps=1)
    trainer.train_dataset = trainer.train_dataset.select_columns(["labels"]).rename_column("labels", "other")
    session_rows = trainer.train_dataset
    from divmon.config import plan
    from divmon.opening import choose_probes
    from divmon.settings import Settings

    assert "other" in session_rows.column_names
    probes = choose_probes(plan(Settings()), trainer, tiny.tokenizer())
    assert probes.domains == ("creative",)
    assert len(probes) == 32
    assert "creative pack" in caplog.text
