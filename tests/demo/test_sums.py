"""The toy task, its rewards, and the packaged model that learned it."""

import importlib
import random
import string
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from divmon.demo import sums

GARBAGE = [
    "",
    "   \n",
    "7",
    "$",
    "$$",
    "- ",
    "- 3",
    "def",
    "def add(): ",
    "The sum",
    "The sum of 3 and 0ad{7.",
    "a def add(): return 3+4  # 7",
    "\\boxed{7}",
    "$3+4=7$",
    "\x00\ufffd\u202e",
    "- 3 plus 4 gives 7",
    "def add(): re g(): 6+7 # 7",
]


def group(*names: str, answer: int = 7) -> list[str]:
    """Completions of 3+4, one a format named."""
    return [sums.write(name, 3, 4, answer) for name in names]


class TestPrompts:
    def test_are_all_hundred_sums_once(self) -> None:
        tasks = sums.prompts()
        assert len({task.prompt for task in tasks}) == 100
        assert all(task.answer == task.a + task.b and str(task.a) in task.prompt for task in tasks)

    def test_use_every_difficulty_and_do_not_mind_the_order_of_the_addends(self) -> None:
        assert {task.difficulty for task in sums.prompts()} == {1, 2, 3, 4, 5}
        assert all(task.difficulty == sums.difficulty(task.b, task.a) for task in sums.prompts())


class TestReading:
    @pytest.mark.parametrize("name", sums.FORMATS)
    def test_gives_back_what_was_written(self, name: str) -> None:
        for task in sums.prompts():
            for number in range(21):
                text = sums.write(name, task.a, task.b, number)
                assert (sums.label(text), sums.answer(text)) == (name, number)
                assert sums.is_correct(text, task.answer) == (number == task.answer)

    @pytest.mark.parametrize("name", sums.FORMATS)
    def test_completions_stay_short(self, name: str) -> None:
        assert max(len(sums.write(name, task.a, task.b, task.answer)) for task in sums.prompts()) < 32

    @pytest.mark.parametrize("text", GARBAGE)
    def test_garbage_has_no_format_and_no_answer(self, text: str) -> None:
        assert (sums.label(text), sums.answer(text)) == (sums.OTHER, None)

    def test_surrounding_space_does_not_matter(self) -> None:
        assert sums.label("  $3+4=\\boxed{7}$\n") == "latex"
        assert sums.answer("  $3+4=\\boxed{7}$\n") == 7

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("def add(): return 3+  # # 7", "program"),
            ("$3++4=\\boxed{}$", "latex"),
            ("- 3\n- plus plus\n- gives", "bullets"),
            ("The sum of of 3 and is 4", "prose"),
        ],
    )
    def test_a_garbled_answer_keeps_its_format_and_earns_nothing(self, text: str, name: str) -> None:
        assert sums.label(text) == name
        assert sums.answer(text) is None

    def test_never_raises_on_noise(self) -> None:
        rng = random.Random(0)
        for _ in range(2000):
            text = "".join(rng.choices(string.printable + "\\${}é", k=rng.randrange(60)))
            assert sums.label(text) in (*sums.FORMATS, sums.OTHER)
            assert sums.answer(text) is None

    @pytest.mark.parametrize("part", ["- a\n", ")", "is ", "\\boxed ", "return ", "$\\boxed", " ", "def f()"])
    @pytest.mark.parametrize("start", ["", "def f(", "def f()", "The sum ", "$", "- "])
    def test_long_hostile_text_is_read_in_linear_time(self, start: str, part: str) -> None:
        began = time.process_time()
        text = start + part * 20_000 + "\n!"
        assert sums.answer(text) is None
        assert sums.label(text) in (*sums.FORMATS, sums.OTHER)
        assert time.process_time() - began < 1.0


class TestCorrectness:
    def test_is_blind_to_the_format(self) -> None:
        completions = [*group(*sums.FORMATS), *group(*sums.FORMATS, answer=8), "7"]
        rewards = sums.correctness(prompts=[""] * 9, completions=completions, answer=[7] * 9, step=3)
        assert rewards == [1.0] * 4 + [0.0] * 5

    def test_refuses_ragged_columns(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            sums.correctness(completions=["7"], answer=[7, 7])


class TestSetDiversity:
    def test_pays_by_how_few_right_answers_look_alike(self) -> None:
        completions = group("program", "program", "prose", "latex")
        rewards = sums.set_diversity(4)(completions=completions, answer=[7] * 4, prompts=[""] * 4)
        assert rewards == pytest.approx([2 / 3, 2 / 3, 1.0, 1.0])

    def test_never_pays_a_right_answer_less_than_a_tenth(self) -> None:
        assert sums.set_diversity(4)(completions=group(*["prose"] * 4), answer=[7] * 4) == [0.1] * 4

    def test_wrong_answers_earn_nothing_and_crowd_nobody(self) -> None:
        completions = group("program") + group("program", "program", "program", answer=9)
        assert sums.set_diversity(4)(completions=completions, answer=[7] * 4) == [1.0, 0.0, 0.0, 0.0]

    def test_groups_do_not_see_each_other(self) -> None:
        completions = group("program", "latex", "program", "latex")
        assert sums.set_diversity(2)(completions=completions, answer=[7] * 4) == [1.0] * 4

    def test_refuses_what_is_not_whole_groups(self) -> None:
        with pytest.raises(ValueError, match="whole groups of 2"):
            sums.set_diversity(2)(completions=group("program"), answer=[7])
        with pytest.raises(ValueError, match="below 2"):
            sums.set_diversity(1)


@pytest.fixture(scope="module")
def training() -> ModuleType:
    pytest.importorskip("trl")
    return importlib.import_module("divmon.demo.training")


@pytest.fixture(scope="module")
def drawn(training: ModuleType) -> list[str]:
    """Four answers to every sum, in the order of the prompts."""
    import torch

    model, tokenizer = training.load_model().eval(), training.load_tokenizer()
    inputs = tokenizer([task.prompt for task in sums.prompts()], return_tensors="pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=32, num_return_sequences=4)
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class TestModel:
    """The packaged model and its tokenizer; nothing here reaches a network."""

    def test_is_small(self, training: ModuleType) -> None:
        assert sum(file.stat().st_size for file in training.MODEL_DIR.iterdir()) <= 2 * 1024**2

    def test_tokenizer_gives_back_exactly_its_text(self, training: ModuleType) -> None:
        tokenizer = training.load_tokenizer()
        for task in sums.prompts():
            for name in sums.FORMATS:
                text = task.prompt + sums.write(name, task.a, task.b, task.answer)
                ids = tokenizer.encode(text)
                assert len(ids) == len(text)
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids) == text
        assert tokenizer.decode(tokenizer.encode("  3 .  \n\n 4  ")) == "  3 .  \n\n 4  "

    def test_tokenizer_and_model_agree(self, training: ModuleType) -> None:
        model, tokenizer = training.load_model(), training.load_tokenizer()
        assert len(tokenizer) == model.config.vocab_size
        assert model.config.eos_token_id == tokenizer.eos_token_id
        assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
        assert tokenizer.padding_side == "left"

    def test_uses_the_formats_about_as_its_training_documents_did(self, drawn: list[str]) -> None:
        counts = Counter(map(sums.label, drawn))
        shares = {name: counts[name] / len(drawn) for name in (*sums.FORMATS, sums.OTHER)}
        wanted = {"program": 0.40, "prose": 0.30, "latex": 0.20, "bullets": 0.10, "other": 0.0}
        assert shares == pytest.approx(wanted, abs=0.07)

    def test_is_right_often_but_has_room_to_learn_and_most_in_programs(self, drawn: list[str]) -> None:
        golds = [task.answer for task in sums.prompts() for _ in range(4)]
        right = [sums.is_correct(text, gold) for text, gold in zip(drawn, golds, strict=True)]
        assert 0.65 < sum(right) / len(right) < 0.85
        accuracy = {
            name: sum(r for r, text in zip(right, drawn, strict=True) if sums.label(text) == name)
            / sum(sums.label(text) == name for text in drawn)
            for name in sums.FORMATS
        }
        assert max(accuracy, key=accuracy.__getitem__) == "program"

    @pytest.mark.parametrize("healthy", [False, True])
    def test_trains(self, training: ModuleType, healthy: bool, tmp_path: Path) -> None:
        trainer = training.grpo_trainer(output_dir=tmp_path, healthy=healthy, steps=1)
        trainer.train()
        assert trainer.state.global_step == 1
        assert trainer.state.log_history[0]["reward"] > 0.2
