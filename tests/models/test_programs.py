"""What counts as a program, and that running one can neither do harm nor fake success."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import time

import pytest

from divmon.errors import ConfigError
from divmon.models import programs
from divmon.models.programs import CodeJudge, extract_program
from divmon.records import Probe

ADD = Probe(
    "add",
    "def add(a: int, b: int) -> int",
    columns={"entry_point": "add", "tests": ["add(2, 3) == 5", "add(0, 0) == 0", "add(-1, 1) == 0", "add(9, 1) == 10"]},
)
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return 'no'\n"
limited = pytest.mark.skipif(sys.platform != "linux", reason="limits need Linux")


def run(program, probe=ADD, **settings):
    return CodeJudge(execute=True, **settings)(probe, program)


def asks(*tests, name="f"):
    return Probe("p", "p", columns={"entry_point": name, "tests": list(tests)})


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        (RIGHT, RIGHT.strip()),
        (f"Sure!\n```python\n{RIGHT}```\nIt adds.", RIGHT.strip()),
        (f"~~~\n{RIGHT}~~~", RIGHT.strip()),
        (f"First try:\n```\n{WRONG}```\nBetter:\n```py\n{RIGHT}```\nUse it so:\n```\nadd(1, 2)\n```", RIGHT.strip()),
        (f"```python\n{RIGHT}", RIGHT.strip()),
        (f"I would write this:\n\n{RIGHT}\nand that's all.", RIGHT.strip()),
        (
            f"    import math\n\n{''.join('    ' + line for line in RIGHT.splitlines(True))}",
            "import math\n\n" + RIGHT.strip(),
        ),
        ("Here:\nadd = lambda a, b: a + b", "add = lambda a, b: a + b"),
        (
            "def helper(x):\n    return x\n\n" + RIGHT + "\nNow you know, don't you?",
            "def helper(x):\n    return x\n\n" + RIGHT.strip(),
        ),
        (RIGHT.replace("\n", "\r\n"), RIGHT.strip()),
        (RIGHT + "print('add(1, 2) is", RIGHT.strip()),
        ("def add(a, b):\n    return a +", None),
        ("def added(a, b):\n    return a + b", None),
        ("class S:\n    def add(self, a, b):\n        return a + b", None),
        ("class S:\n    pass\n\n" + RIGHT, "class S:\n    pass\n\n" + RIGHT.strip()),
        ("def outer():\n    def add(a, b):\n        return a + b", None),
        ("add the numbers", None),
        ("", None),
        ("\x00\ud800" + RIGHT, None),
    ],
)
def test_the_program_of_a_completion(completion, program):
    assert extract_program(completion, "add") == program
    assert CodeJudge()(ADD, completion) == float(program is not None)


@pytest.mark.parametrize(
    "hostile",
    [
        "(" * 19_000,
        "add = " + "-" * 19_000 + "1",
        "add = x" + ".a" * 9_000,
        "add = " + "not " * 4_000 + "x",
        "def add(a, b):\n" * 1_300,
        "add = [\n" * 2_000,
        "```\n" * 5_000,
        "add = 1 +\n" * 2_000,
        "def add(a, b):\n  return 1\n)\n" * 600,
        "if 1:\n" + "".join(" " * i + "if 1:\n" for i in range(1, 190)),
        "add = " + "9" * 10_000,
        RIGHT * 100_000,
    ],
)
def test_hostile_text_is_read_quickly_and_without_a_crash(hostile):
    started = time.monotonic()
    assert CodeJudge()(ADD, hostile) in (0.0, 1.0)
    assert time.monotonic() - started < 3


def test_without_execute_nothing_is_ever_started(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a process was started")

    for module, names in ((subprocess, ("Popen", "run")), (os, ("system", "fork", "posix_spawn", "execv"))):
        for name in names:
            monkeypatch.setattr(module, name, forbidden)
    judge = CodeJudge()
    assert judge(ADD, RIGHT) == 1.0
    assert judge(ADD, "raise SystemExit\n" + RIGHT) == 1.0
    assert judge(ADD, "def add(") == 0.0


def test_probes_that_ask_for_no_program_are_unknown():
    assert math.isnan(CodeJudge()(Probe("m", "2 + 2?"), RIGHT))
    assert math.isnan(CodeJudge()(Probe("m", "2 + 2?", gold="4"), RIGHT))


@limited
def test_without_tests_there_is_nothing_to_run():
    probe = Probe("a", "a", columns={"entry_point": "add"})
    assert math.isnan(run(RIGHT, probe))
    assert CodeJudge()(probe, RIGHT) == 1.0


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"timeout": math.nan}, {"timeout": -1.0}, {"memory_mb": 1}])
def test_settings_that_cannot_work(settings):
    with pytest.raises(ConfigError):
        CodeJudge(**settings)


def test_other_systems_are_refused_only_when_programs_would_run(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert CodeJudge()(ADD, RIGHT) == 1.0
    with pytest.raises(ConfigError, match="Linux"):
        CodeJudge(execute=True)


@limited
@pytest.mark.parametrize(
    ("completion", "share"),
    [
        (RIGHT, 1.0),
        (f"Gladly.\n```python\n{RIGHT}print(add(1, 2))\n```\nDone.", 1.0),
        ("import operator\nfrom functools import reduce\ndef add(*n):\n    return reduce(operator.add, n)", 1.0),
        ("add = lambda a, b: a - -b", 1.0),
        (WRONG, 0.0),
        ("def add(a, b):\n    return 0", 0.5),
        ("def add(a, b):\n    return a + b if a else 1 / 0", 0.75),
        ("def add(a, b):\n    return a +", 0.0),
        ("return 1\n" + RIGHT, 0.0),
        (RIGHT + "raise ValueError", 0.0),
        (RIGHT + "del add", 0.0),
        ("def add(a, b):\n    return add(a, b)", 0.0),
        ("def add(a, b):\n    return input()", 0.0),
        ("def add(a, b):\n    raise KeyboardInterrupt", 0.0),
        ("if __name__ == '__main__':\n    raise SystemExit\n" + RIGHT, 1.0),
        (RIGHT + "print('\\ud800' * 3)", 1.0),
        ("import dataclasses, collections, enum, typing\nP = collections.namedtuple('P', 'a b')\n" + RIGHT, 1.0),
    ],
)
def test_the_share_of_tests_that_hold(completion, share):
    assert run(completion) == share


@limited
def test_a_program_that_hangs_is_stopped():
    started = time.monotonic()
    assert run(RIGHT + "while True: pass", timeout=0.5) == 0.0
    assert run("import time\ndef add(a, b):\n    time.sleep(60)", timeout=0.3) == 0.0
    assert time.monotonic() - started < 4


@limited
@pytest.mark.parametrize(
    "program",
    [
        RIGHT + "x = 'x' * (2 << 30)",
        RIGHT + "x = [0]\nwhile True: x += x",
        "def add(a, b):\n    return len(bytearray(2 << 30)) and a + b",
    ],
)
def test_memory_is_limited(program):
    assert run(program, memory_mb=128) == 0.0


@limited
@pytest.mark.parametrize(
    "attempt",
    [
        "import os\nfor i in range(3): os.fork()",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.system('true')",
        "import os\nos.execv('/bin/true', ['true'])",
        "import subprocess\nsubprocess.run(['true'])",
        "import _posixsubprocess",
        "import ctypes",
        "import socket\nsocket.socket()",
        "import threading\nthreading.Thread(target=print).start()",
        "import os\nos.kill(os.getppid(), 0)",
        "import os\nos.killpg(os.getpgrp(), 0)",
        "import os\nos.pidfd_open(os.getppid())",
        "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CORE)",
        "import os\nos.environ['HOME']",
        "open('/proc/%d/environ' % __import__('os').getppid())",
        "open('/etc/passwd')",
        "open('made-here', 'w')",
        "import os\nos.open('made-here', os.O_CREAT | os.O_WRONLY)",
        "import os\nos.mkdir('made-here')",
        "import os\nos.remove('nothing')",
        "import os\nos.write(os.memfd_create('m'), b'x')",
        "import _xxsubinterpreters as s\ns.create()",
        "import gc\ngc.get_objects()",
        "import sys\nsys.settrace(print)",
        "import sys\nsys.stdin.readline()[0]",
        "import __main__\n__main__.holds",
    ],
)
def test_what_a_program_may_not_do(attempt):
    assert run(f"{RIGHT}\n{attempt}\n") == 0.0
    caught = "\n".join(f"    {line}" for line in attempt.splitlines())
    assert run(f"{RIGHT}try:\n{caught}\nexcept BaseException:\n    pass\nelse:\n    add = None\n") == 1.0


@limited
def test_the_limit_on_processes_holds_without_the_audit_hook(monkeypatch):
    bare = programs._RUNNER.replace("    sys.addaudithook(hook)\n", "")
    assert bare != programs._RUNNER
    monkeypatch.setattr(programs, "_RUNNER", bare)
    bomb = "import os\nforks = 0\nfor i in range(9):\n    try:\n        os.fork()\n        forks += 1\n"
    bomb += "    except BlockingIOError: pass\n"
    assert run(f"{RIGHT}{bomb}if forks: add = None") == 1.0
    assert run(f"{RIGHT}import os\nwhile True: os.fork()") == 0.0
    assert run(f"{RIGHT}import os\nos.write(os.memfd_create('m'), b'x')") == 0.0


@limited
def test_files_are_neither_written_nor_emptied(tmp_path):
    kept = tmp_path / "weights"
    kept.write_text("precious")
    made = tmp_path / "made"
    for line in (
        f"open({str(kept)!r}, 'w')",
        f"open({str(made)!r}, 'w').write('x')",
        f"import os\nos.remove({str(kept)!r})",
    ):
        assert run(RIGHT + line) == 0.0
    assert kept.read_text() == "precious"
    assert not made.exists()


@limited
def test_nothing_of_the_environment_is_seen(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter")
    probe = asks("f() == ''", "f() != ''")
    assert run("import os\ndef f():\n    return os.environ.get('SECRET_KEY', '')", probe) == 0.5
    only = asks("f() <= {'LC_CTYPE'}")
    assert run("import os\ndef f():\n    return set(os.environ)", only) == 1.0


@limited
@pytest.mark.parametrize(
    "flood",
    [
        "print('x' * 50_000_000)",
        "import os\nfor i in range(1, 3): os.write(i, b'x' * 1_000_000)",
    ],
)
def test_what_a_program_prints_is_dropped(flood):
    assert run(RIGHT + flood) == 1.0


@limited
def test_a_flood_into_the_channel_of_verdicts_counts_as_nothing():
    flood = "import os\nfor i in range(64, 256):\n    try: os.write(i, b'1' * 1_000_000)\n    except OSError: pass"
    started = time.monotonic()
    assert run(RIGHT + flood) == 0.0
    assert time.monotonic() - started < 3


@limited
@pytest.mark.parametrize(
    "trick",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "import os\nprint('1111', flush=True)\nos._exit(0)",
        "import os\nfor i in range(256):\n    try: os.write(i, b'0' * 32 + b' 1111\\n')\n"
        "    except OSError: pass\nos._exit(0)",
        "import atexit\natexit.register(print, '1111')",
        "class Yes:\n    def __eq__(self, other): return True\nadd = lambda a, b: Yes()",
        "class Yes(int):\n    def __eq__(self, other): return True\nadd = lambda a, b: Yes(1)",
        "class Yes(str):\n    def __eq__(self, other): return True\nadd = lambda a, b: Yes()",
        "class Yes(list):\n    def __eq__(self, other): return True\nadd = lambda a, b: Yes()",
        "import builtins\nbuiltins.eval = lambda *a: True\nbuiltins.compile = lambda *a: 'True'",
        "__builtins__.eval = lambda *a: True",
        "import __main__\n__main__.holds = lambda *a: True",
        "import os\nos.write = os.pread = lambda *a: b'1'",
        "import json\njson.loads = None\nimport sys\nsys.modules.clear()",
    ],
)
def test_tricks_do_not_pass_for_success(trick):
    assert run(f"{WRONG}\n{trick}\n") == 0.0


@limited
def test_an_exit_inside_a_test_fails_that_test_only():
    assert run("import sys\ndef add(a, b):\n    if a == 2: sys.exit(0)\n    return a + b") == 0.75
    assert run("import os\ndef add(a, b):\n    os._exit(0)") == 0.0


@limited
@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f():\n    yield from (1, 2)", "list(f()) == [1, 2]"),
        ("def f():\n    return map(str, [1])", "list(f()) == ['1']"),
        ("from collections import Counter\ndef f():\n    return Counter('aab')", "f() == {'a': 2, 'b': 1}"),
        (
            "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f():\n    return [P(1, 2)]",
            "f() == [(1, 2)]",
        ),
        ("def f():\n    return lambda x: x + 1", "f()(1) == 2"),
        ("def f(x):\n    x.sort()", "(lambda x: (f(x), x)[1])([2, 1]) == [1, 2]"),
        ("import enum\nclass E(enum.IntEnum):\n    A = 1\ndef f():\n    return E.A", "f() == 1"),
        ("def f(x):\n    return x", "f('\\'\"\\n\\x00;$(ls)') == '\\'\"\\n\\x00;$(ls)'"),
    ],
)
def test_honest_results_of_every_kind_are_compared_as_they_are(program, test):
    assert run(program, asks(test)) == 1.0


@limited
def test_one_process_a_completion_which_leaves_nothing_behind(monkeypatch, tmp_path):
    started, popen = [], subprocess.Popen

    def counted(*args, **kwargs):
        started.append((args[0], kwargs, popen(*args, **kwargs)))
        return started[-1][-1]

    monkeypatch.setattr(programs.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(programs.subprocess, "Popen", counted)
    state = random.getstate()
    assert [run(RIGHT), run(RIGHT + "while True: pass", timeout=0.2)] == [1.0, 0.0]
    assert random.getstate() == state
    assert len(started) == 2
    assert list(tmp_path.iterdir()) == []
    for command, settings, process in started:
        assert command[:3] == [sys.executable, "-I", "-S"]
        assert "def add" not in " ".join(command)
        assert settings["env"] == {}
        assert settings["start_new_session"]
        assert not settings.get("shell")
        assert process.returncode is not None


@limited
def test_no_limits_no_run(monkeypatch):
    monkeypatch.setattr(programs, "_RUNNER", programs._RUNNER.replace("os.fork()", "99"))
    with pytest.raises(RuntimeError, match="processes can be started"):
        run(RIGHT)
    monkeypatch.setattr(programs, "_RUNNER", "raise SystemExit")
    with pytest.raises(RuntimeError, match="did not start"):
        run(RIGHT)
