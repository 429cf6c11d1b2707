"""Which completions are programs that define what was asked for and, where running them is allowed, pass the tests."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings

from divmon.errors import ConfigError
from divmon.records import Probe

__all__ = ["CodeJudge", "extract_program"]

_LONGEST = 20_000  # characters of a completion that are looked at
_TRIES = 40  # parses of one completion
_MOST = 4096  # bytes read back from a run; an honest one sends far fewer
_START = 20.0  # seconds for the interpreter to come up, before the program's own time starts
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)
_BEGIN = re.compile(r"\s*(?:(?:def|class|import|from|async)\s|@|[A-Za-z_]\w*\s*[:=])")


class CodeJudge:
    """The quality of a completion that should be a Python function: ``divmon.watch(..., quality=CodeJudge())``.

    A probe says what is asked for: its columns hold ``entry_point`` (a name) and ``tests`` (Python expressions that
    are True for a right solution), as those of the ``code`` pack do. Of other probes the quality is NaN, unknown.

    Without `execute`, nothing is run: 1.0 for a program that parses and defines the entry point, else 0.0.

    With `execute`, the share of tests that hold; 0.0 when the program crashes, hangs or does not parse. **This runs
    what a model wrote, on this machine, as a process of this user** (of ``nobody`` if this one is root's). It has an
    empty environment and working directory, no standard input, limits on processor time, memory, file size and child
    processes, and an audit hook refuses files outside the standard library, sockets, signals and other programs; it
    and its process group are killed at the timeout. That is a fence against accidents and simple tricks, not a
    sandbox: a program that shares an interpreter with its tests can always be written to deceive or to break out. For
    policies you have reason to distrust, run training itself in a container without network or secrets.

    Tests see the entry point and the builtins, nothing else of the program. Results that compare as they like do not
    help: what the entry point returns must be plain values, containers, iterators or functions of those.

    Args:
        execute: Run the tests. Linux only.
        timeout: Seconds for one program with all its tests.
        memory_mb: Address space of one program.

    Raises:
        ConfigError: A setting that cannot work.

    >>> probe = Probe("a", "def add(a, b)", columns={"entry_point": "add", "tests": ["add(2, 3) == 5"]})
    >>> judge = CodeJudge()
    >>> judge(probe, "Of course! def add(a, b): return a + b"), judge(probe, "def add(a, b):\\n    return a + b")
    (0.0, 1.0)
    """

    def __init__(self, *, execute: bool = False, timeout: float = 2.0, memory_mb: int = 512) -> None:
        if not (math.isfinite(timeout) and timeout > 0):
            raise ConfigError(f"timeout={timeout!r}: pass a positive number of seconds.")
        if memory_mb < 64:
            raise ConfigError(f"memory_mb={memory_mb!r}: an interpreter needs at least 64.")
        if execute and not (sys.platform == "linux" and sys.executable):
            raise ConfigError("execute=True needs Linux, for its limits. Leave it out to check programs unrun.")
        self.execute = execute
        self.timeout = timeout
        self.memory_mb = memory_mb

    def __repr__(self) -> str:
        return f"CodeJudge(execute={self.execute}, timeout={self.timeout:g}, memory_mb={self.memory_mb})"

    def __call__(self, probe: Probe, completion: str) -> float:
        """Quality from 0 to 1; NaN for a probe that asks for no program.

        Raises:
            RuntimeError: The limits could not be set, so nothing was run.
        """
        name = probe.columns.get("entry_point")
        tests = [str(test) for test in probe.columns.get("tests") or ()]
        if not name or (self.execute and not tests):
            return math.nan
        program = extract_program(completion, str(name))
        if program is None:
            return 0.0
        return self._run(program, str(name), tests) if self.execute else 1.0

    def _run(self, program: str, name: str, tests: list[str]) -> float:
        """The share of `tests` that hold after `program`, in a process of its own."""
        token = secrets.token_hex(16)
        request = {
            "program": program,
            "name": name,
            "tests": tests,
            "cpu": math.ceil(self.timeout) + 1,
            "memory": self.memory_mb * 2**20,
            "channels": [64 + secrets.randbelow(64), 128 + secrets.randbelow(64)],
        }
        with tempfile.TemporaryDirectory(prefix="divmon-") as empty, tempfile.TemporaryFile() as stdin:
            stdin.write((token + json.dumps(request)).encode("ascii"))
            stdin.flush()
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", _RUNNER],
                cwd=empty,
                env={},
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                answer = _answer(process, self.timeout)
            finally:
                _end(process)
        state, _, rest = answer.partition(b"\n")
        if state != b"ready":
            reason = state.decode("ascii", "replace") or "the interpreter did not start"
            raise RuntimeError(f"No program was run, because its limits could not be set: {reason}.")
        verdicts = re.fullmatch(rb"%b ([01]{%d})\n" % (token.encode("ascii"), len(tests)), rest)
        return verdicts[1].count(b"1") / len(tests) if verdicts else 0.0


def extract_program(completion: str, name: str) -> str | None:
    """The program in a completion that defines `name` at its top level, or None. Nothing is run.

    The last fenced block that has one, else the longest run of lines that parses.

    >>> extract_program("Here you are:\\ndef one():\\n    return 1\\nHope this helps!", "one")
    'def one():\\n    return 1'
    """
    text = completion[:_LONGEST].replace("\r\n", "\n")
    tries = _TRIES
    for candidate in [*reversed([block[2] for block in _FENCE.finditer(text)]), text]:
        program, tries = _longest(candidate, name, tries)
        if program is not None:
            return program
    return None


def _longest(text: str, name: str, tries: int) -> tuple[str | None, int]:
    """The longest run of lines that parses and defines `name`, and the tries left."""
    lines = text.split("\n")
    last = max((i for i, line in enumerate(lines) if re.match(rf"\s*(?:def\s+)?{re.escape(name)}\b", line)), default=-1)
    best, length = None, 0
    block = next((i for i, line in enumerate(lines) if line.startswith(("class ", "def "))), len(lines))
    for start in range(last + 1):
        inside = start > block and lines[start][:1].isspace()  # a method or an inner function is no program
        if inside or (start > 0 and not _BEGIN.match(lines[start])):
            continue
        end = len(lines)
        while end - start > length and tries > 0:
            tries -= 1
            source = textwrap.dedent("\n".join(lines[start:end]))
            tree, wrong = _parse(source)
            if tree is not None:
                if _defines(tree, name):
                    best, length = source.strip("\n"), end - start
                break
            end = start + min(end - start - 1, wrong)
    return best, tries


def _parse(source: str) -> tuple[ast.Module | None, int]:
    """The tree, or None and how many lines come before the first one that is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like: the model's, not the user's
            return ast.parse(source), 0
    except SyntaxError as error:
        return None, (error.lineno or 1) - 1
    except (ValueError, RecursionError, MemoryError):
        return None, 0


def _defines(tree: ast.Module, name: str) -> bool:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return True
    return False


def _answer(process: subprocess.Popen[bytes], timeout: float) -> bytes:
    """What the process wrote until it ended, ran out of time or wrote too much."""
    assert process.stdout is not None
    channel = process.stdout.fileno()
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    written, deadline = b"", time.monotonic() + _START
    while len(written) < _MOST and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        chunk = os.read(channel, _MOST)
        if not chunk:
            break
        if not written:
            deadline = time.monotonic() + timeout
        written += chunk
    return written


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and whatever is left of its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


# The other side, run as `python -I -S -B -c`. It reads the request from its standard input (a file: the token, then
# JSON), gives up its standard streams, limits itself, says "ready", and only then runs the program. The token is not
# read before the tests are over, so a program that prints verdicts and exits has none to print.
_RUNNER = r'''
import builtins, json, os, posix, resource, sys

READABLE = tuple(path.rstrip("/") + "/" for path in sys.path)
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
UNAUDITED = "pidfd_open setpriority sched_setaffinity sched_setscheduler sched_setparam mknod mkfifo".split()
REFUSED = frozenset(("ctypes", "_ctypes", "subprocess", "_posixsubprocess", "socket", "_socket", "_xxsubinterpreters"))
EVENTS = frozenset("""
    array.__new__ builtins.id builtins.input builtins.input/result code.__new__ compile exec function.__new__ import
    marshal.load marshal.loads object.__delattr__ object.__getattr__ object.__setattr__ open os.listdir os.scandir
    pickle.find_class sys._getframe sys._getframemodulename sys.excepthook sys.unraisablehook time.sleep
""".split())
HARMLESS = frozenset("""
    __future__ abc array base64 binascii bisect calendar cmath collections contextlib copy dataclasses datetime decimal
    enum fractions functools hashlib heapq itertools json math numbers operator random re statistics string struct
    textwrap time types typing unicodedata
""".split())


def fence():
    def hook(event, args, events=EVENTS, refused=REFUSED, readable=READABLE, kind=type, text=str, changes=CHANGES):
        fine = event in events
        if event == "import":
            fine = args[0] not in refused
        elif event == "open":
            path, _, flags = args
            fine = kind(path) is text and path.startswith(readable) and "/../" not in path and not flags & changes
        if not fine:
            raise PermissionError(event)

    for name in UNAUDITED:
        posix.__dict__.pop(name, None)
        os.__dict__.pop(name, None)
    sys.modules["_signal"].__dict__.pop("pidfd_send_signal", None)
    sys.addaudithook(hook)


def limit(cpu, memory):
    if os.geteuid() == 0:  # no limit on the number of processes binds root
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    for what, most in (("CPU", cpu), ("AS", memory), ("FSIZE", 0), ("CORE", 0), ("NPROC", 0)):
        what = getattr(resource, "RLIMIT_" + what)
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    try:
        child = os.fork()
    except OSError:
        return
    if child == 0:
        os._exit(0)
    raise OSError("processes can be started in spite of the limit")


def plain(value):
    """The value, if plain all the way down, else a copy with nothing in it that could answer a comparison its way."""
    if sealed(value):
        return value
    kind = type(value)
    if issubclass(kind, dict):
        return {plain(k): plain(v) for k, v in dict.items(value)}
    for base in (list, tuple, set, frozenset):
        if issubclass(kind, base):
            return base([plain(item) for item in base.__iter__(value)])
    for base, copy in ((int, int.__int__), (float, float.__float__), (str, str.__str__)):
        if issubclass(kind, base):
            return copy(value)
    if callable(value):
        return lambda *args, **kwargs: plain(value(*args, **kwargs))
    return (plain(item) for item in value)


def sealed(value):
    kind = type(value)
    if kind is dict:
        return all(sealed(k) and sealed(v) for k, v in value.items())
    if kind in (list, tuple, set, frozenset):
        return all(sealed(item) for item in value)
    return value is None or kind in (bool, int, float, complex, str, bytes, range)


def define(source, name):
    """The entry point of the program, or None. It gets builtins of its own, so that spoiling them is no use."""
    module, own = type(sys)("program"), type(sys)("builtins")
    own.__dict__.update(builtins.__dict__)
    module.__builtins__ = own
    sys.modules.update(program=module, builtins=own, __main__=module)
    try:
        exec(compile(source, "<program>", "exec", dont_inherit=True), module.__dict__)
        return plain(module.__dict__[name])
    except BaseException:
        return None


def holds(test, name, function, clean):
    try:
        return eval(compile(test, "<test>", "eval"), {"__builtins__": dict(clean), name: function}) is True
    except BaseException:
        return False


def main(write=os.write, pread=os.pread, leave=os._exit):
    request = json.loads(pread(0, os.fstat(0).st_size, 32))
    secret, out = (os.dup2(i, channel) for i, channel in enumerate(request["channels"]))
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    sys.stdout.reconfigure(errors="replace")
    for module in HARMLESS.intersection(request["program"].replace(",", " ").replace(".", " ").split()):
        __import__(module)  # now, because the user limited below may not be allowed to read it
    clean = dict(vars(builtins))
    try:
        limit(request["cpu"], request["memory"])
        fence()
    except Exception as error:
        write(out, ascii(error).encode("ascii") + b"\n")
        leave(1)
    write(out, b"ready\n")
    function = define(request["program"], request["name"])
    verdicts = ["1" if function and holds(t, request["name"], function, clean) else "0" for t in request["tests"]]
    write(out, pread(secret, 32, 0) + (" " + "".join(verdicts) + "\n").encode("ascii"))
    leave(0)


main()
'''
