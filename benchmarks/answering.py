"""A worker's half of a conversation in JSON lines: it answers every request on its standard input until that ends. Knows nothing of freedive or torch, whose workers both use it."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any


def answer_lines(answer: Callable[[dict[str, Any]], dict[str, Any]], tell_failures: bool = False) -> None:
    """One line of JSON for each. What a compiler or a library prints goes to standard error, so that it is not taken for an answer.
    tell_failures: an exception becomes {"failure": its type and first line}, and the next request is answered; else it ends the worker."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            found = answer(json.loads(line))
        except Exception as e:
            if not tell_failures:
                raise
            traceback.print_exc()
            found = {"failure": f"{type(e).__name__}: {next(iter(str(e).splitlines()), '')}"}
        print(json.dumps(found), file=answers, flush=True)
