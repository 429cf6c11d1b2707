"""What cannot be watched is refused when training starts, with the reason and what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

import divmon
from divmon.errors import ConfigError

pytestmark = pytest.mark.trainer
FEW: dict[str, Any] = {
    "probes": ["1+1=", "2+3="], "k": 2, "every": 1, "score_every": 1, "max_new_tokens": 4, "sinks": [], "alarms": [],
    "strict": True,
}  # fmt: skip


def begin(trainer: Any) -> None:
    """What the trainer does when training starts."""
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)


@pytest.mark.parametrize("kind", ["FSDP1", "ZeRO-3"])
def test_sharding_that_cannot_be_sampled_is_refused_when_training_starts(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from accelerate.state import AcceleratorState
    from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin

    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**FEW)])
    told = AcceleratorState._shared_state  # what Accelerate says once it is configured so
    if kind == "FSDP1":
        monkeypatch.setitem(told, "fsdp_plugin", FullyShardedDataParallelPlugin(fsdp_version=1))
        expected = "FSDP1 corrupts checkpoints.* Use FSDP2.*divmon measure"
    else:
        plugin = DeepSpeedPlugin(zero_stage=3)
        plugin._selected = True  # select() does so and loads deepspeed
        monkeypatch.setitem(told, "deepspeed_plugins", {"default": plugin})
        monkeypatch.setitem(told, "distributed_type", DistributedType.DEEPSPEED)
        expected = "ZeRO-3 shards every weight.* Use ZeRO-2.*divmon measure"
    with pytest.raises(ConfigError, match=expected):
        begin(trainer)


def test_an_encoder_decoder_model_is_refused_when_the_trainer_is_made(tiny: Any, tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    small = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1, "vocab_size": 64}
    model = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **small))
    arguments = TrainingArguments(**tiny.arguments(tmp_path))
    with pytest.raises(ConfigError, match=r"encoder-decoder model.*divmon measure"):
        Trainer(model=model, args=arguments, processing_class=tiny.tokenizer(), callbacks=[divmon.DiversityCallback()])


def test_a_model_without_generate_is_refused_when_the_trainer_is_made(tiny: Any, tmp_path: Path) -> None:
    model = tiny.gpt2().transformer
    with pytest.raises(ConfigError, match=r"no generate\(\).*AutoModelForCausalLM"):
        Trainer(
            model=model, args=TrainingArguments(**tiny.arguments(tmp_path)), processing_class=tiny.tokenizer(),
            callbacks=[divmon.DiversityCallback()],
        )  # fmt: skip


def test_data_with_images_is_refused_unless_probes_are_named(tiny: Any, tmp_path: Path) -> None:
    def with_images(**settings: Any) -> Any:
        trainer = tiny.trainer(tmp_path, callbacks=[divmon.DiversityCallback(**{**FEW, **settings})], max_steps=1)
        rows = trainer.train_dataset
        trainer.train_dataset = rows.add_column("images", [[0]] * len(rows))
        return trainer

    with pytest.raises(ConfigError, match=r"multimodal \(column 'images'\).*probes=\[...\].*divmon measure"):
        begin(with_images(probes=None))
    with_images().train()
    assert [e.step for e in divmon.History.read(tmp_path).evaluations] == [0, 1]


def test_a_multimodal_model_is_watched_on_prompts_of_text(tiny: Any, tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.trainer_utils import set_seed

    tokenizer = tiny.tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    rows = Dataset.from_list([{"input_ids": tokenizer(p + "the sum")["input_ids"]} for p in tiny.PROMPTS])

    def run(out: Path, callbacks: Any) -> Any:
        set_seed(0)
        vision = CLIPVisionConfig(image_size=16, patch_size=8, **small)
        text = LlamaConfig(vocab_size=len(tokenizer) + 1, max_position_embeddings=96, **small)
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=len(tokenizer))
        trainer = Trainer(
            model=LlavaForConditionalGeneration(config), train_dataset=rows, processing_class=tokenizer,
            args=TrainingArguments(**tiny.arguments(out, max_steps=2, gradient_checkpointing=False)),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False), callbacks=callbacks,
        )  # fmt: skip
        trainer.train()
        return trainer

    plain, watched = run(tmp_path / "plain", []), run(tmp_path, [divmon.DiversityCallback(**FEW)])
    assert tiny.digest(watched.model) == tiny.digest(plain.model)
    scores = divmon.History.read(tmp_path).scores().evaluations
    values = [{m.metric: m.value for m in e.measurements} for e in scores]
    assert values[0]["kl_per_token"] == 0.0
    assert values[-1]["kl_per_token"] > 0.0


def test_a_trainer_with_vllm_is_told_that_it_is_unverified(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**{**FEW, "sinks": ["console"]})], max_steps=1)
    trainer.args.use_vllm = True  # GRPO's switch; its trainer asks for vLLM itself when it is made
    trainer.train()
    assert "vLLM: probes are sampled with the trainer's own copy of the model" in capsys.readouterr().out


def test_resampling_is_refused_where_weights_are_sharded(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {"name": "always", "metric": "length", "rule": "above", "level": 0.5, "then": ["resample"]}
    settings = {**FEW, "alarms": [rule], "quality": lambda probe, text: 1.0}
    trainer = tiny.sft(tmp_path, callbacks=[divmon.DiversityCallback(**settings)])
    monkeypatch.setattr("divmon.compat.sharded", lambda trainer: True)
    with pytest.raises(ConfigError, match=r"one rank only.*Train with DDP"):
        trainer.train()
