"""A real trainer that reports to W&B keeps every row of its own when the sink writes between them."""

from __future__ import annotations

import pytest

from divmon.records import Measurement, Observation, Probe, SampleBatch
from divmon.sinks import WandbSink

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
wandb = pytest.importorskip("wandb")

pytestmark = pytest.mark.trainer
OURS = "divmon/default/tfidf_distance"


class Emitter(transformers.TrainerCallback):
    """Emits an observation at the start and after every `every` steps, from inside the training loop."""

    def __init__(self, sink, every):
        self.sink, self.every = sink, every

    def _emit(self, step):
        distance = Measurement(step=step, domain="default", metric="tfidf_distance", value=step / 8)
        batch = SampleBatch(step=step, probes=(Probe(id="a", prompt="Hi"),), texts=(("one", f"two {step}"),))
        self.sink.emit(Observation(step=step, measurements=(distance,), batch=batch, baseline=batch))

    def on_train_begin(self, args, state, control, **kwargs):
        self._emit(0)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self._emit(state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        self.sink.close()


@pytest.fixture
def train(tmp_path, offline_wandb, read_wandb):
    """Trains a tiny model with ``report_to="wandb"`` and reads the run it left."""

    def run(name, *callbacks):
        where = tmp_path / name
        where.mkdir()
        offline_wandb(where)
        transformers.set_seed(0)
        config = transformers.GPT2Config(
            vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
        model = transformers.GPT2LMHeadModel(config)
        ids = torch.randint(0, 64, (24, 8), generator=torch.Generator().manual_seed(1))
        args = transformers.TrainingArguments(
            output_dir=str(where / "out"),
            report_to="wandb",
            run_name=name,
            max_steps=12,
            per_device_train_batch_size=2,
            per_device_eval_batch_size=8,
            logging_steps=2,
            eval_strategy="steps",
            eval_steps=4,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = [{"input_ids": row, "labels": row} for row in ids]
        trainer = transformers.Trainer(
            model, args, train_dataset=rows, eval_dataset=rows[:8], callbacks=list(callbacks)
        )
        assert wandb.run is None
        trainer.train()
        assert wandb.run is not None  # closing the sink has not closed the run
        wandb.finish()
        (saved,) = read_wandb(where)
        return saved

    return run


def own_rows(run):
    """The trainer's rows, without clocks and the row counter."""
    clocks = ("_", "eval/runtime", "eval/samples_per_second", "eval/steps_per_second")
    rows = [{k: v for k, v in row.items() if not k.startswith(clocks)} for row in run.history]
    return [row for row in rows if not any(key.startswith("divmon/") for key in row)]


def test_no_row_of_the_trainer_is_lost_or_shifted(train):
    alone = train("alone")
    for every in (1, 3):
        watched = train(f"watched-{every}", Emitter(WandbSink(), every))
        assert own_rows(watched) == own_rows(alone)
        assert watched.series("train/loss") == alone.series("train/loss")
        assert [step for step, _ in watched.series("train/loss")] == [2, 4, 6, 8, 10, 12]
        expected = [(step, step / 8) for step in range(0, 13, every)]
        assert watched.series(OURS) == expected
        assert [step for step, _ in watched.series("divmon/samples")] == [step for step, _ in expected]
        assert watched.summary["train/loss"] == alone.summary["train/loss"]
        assert watched.summary["train/global_step"] == 12
