"""Programs that models write run in a sandbox: the published solutions pass, and nothing gets out."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from freedive.eval import sandbox
from freedive.eval.suites.base import read_items
from freedive.eval.suites.human_eval import HumanEval, from_reply, run_tests
from freedive.eval.suites.rows import Code

FILE = Path(__file__).parents[3] / "shared" / "data" / "rl" / "HumanEval.jsonl.gz"
pytestmark = pytest.mark.skipif(bool(sandbox.unavailable()), reason=f"programs cannot be run: {sandbox.unavailable()}")


@pytest.mark.skipif(not FILE.is_file(), reason="HumanEval's file is not here")
def test_canonical_solutions_pass_and_empty_ones_do_not():
    problems = [item.value for item in read_items(HumanEval, FILE)]
    assert len(problems) == 164
    outcomes = run_tests(problems, [p.prompt + p.solution for p in problems])
    assert [p.entry_point for p, o in zip(problems, outcomes) if not o.passed] == []
    assert not any(o.passed for o in run_tests(problems[:20], [p.prompt + "    return None\n" for p in problems[:20]]))


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import os; os._exit(0)", "ended with code 0"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("x = 'a' * (2 << 30)", "MemoryError"),
        ("import socket; socket.create_connection(('127.0.0.1', 1), 1)", "Error"),
        ("open('/etc/passwd')", "FileNotFoundError"),
        (f"open({str(Path(__file__).resolve())!r})", "FileNotFoundError"),
        ("open('/usr/x', 'w')", "OSError"),
        ("import os; os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['ls'])", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "RuntimeError"),
        ("open('/tmp/a', 'w').write('x' * (2 << 20))", "OSError"),
        ("raise SystemError('x' * 10**6)", "SystemError"),
    ],
)
def test_what_a_program_cannot_do(program, error):
    outcome = sandbox.run_python(program, seconds=10)
    assert not outcome.passed and error in outcome.error and len(outcome.error) <= 500


def test_endless_programs_end_and_leave_nothing():
    begin = time.monotonic()
    assert "no end after 1" in sandbox.run_python("while True: pass", seconds=1).error
    assert not sandbox.run_python("import sys\nwhile True: sys.stderr.write('x' * 4096)", seconds=5).passed
    assert time.monotonic() - begin < 15


def test_replies_of_an_assistant():
    problem = Code("import math\n\ndef area(r):\n    '''Area.'''\n", "    return math.pi * r * r\n", "def check(f):\n    assert abs(f(1) - 3.14159) < 1e-3\n", "area")
    whole = "Sure:\n```python\ndef area(r):\n    return math.pi * r ** 2\n```\nDone."
    body = "```\n    return math.pi * r ** 2\n```"
    outcomes = run_tests([problem] * 3, [from_reply(problem, whole), from_reply(problem, body), from_reply(problem, "I do not know.")])
    assert [o.passed for o in outcomes] == [True, True, False]
