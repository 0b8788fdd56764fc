"""Saved conversations: a tree of messages each, kept as one JSON Lines file that is only ever appended to.

A question asked again, or an answer drawn again, is a new branch beside the old one; nothing is overwritten. What is on the disk is a log of
records, the last one about a message wins:
    {"kind": "conversation", "version": 1, "id", "title", "created", "system"}     the first line
    {"kind": "node", "id", "parent", "role", "text", ...}                          a message, whole
    {"kind": "delta", "id", "text", "reasoning", "tokens"}                         more of an answer that is being written
    {"kind": "choose", "id"}                                                       the branch shown where this one forks off
So a process killed in the middle of an answer loses at most the last second of it, and a torn last line is passed over.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freedive.runs import UserError, write_atomic
from freedive.runs.atomic import write_all

MAX_BYTES = 64 << 20  # of a conversation that is still opened
_ID = re.compile(r"[0-9a-f]{32}")
_NODE = re.compile(r"[0-9a-f]{12}")


@dataclass
class Node:
    """A message. `tokens`, of answers of the served model: [id, log-prob, [[id, log-prob], ...]] each, nats."""

    id: str
    parent: str  # "" for the first
    role: str  # user, assistant
    text: str = ""
    reasoning: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)  # {"tool", "call", "answer", "seconds", "at": where in `tokens` its answer stands}, or {"tool", "call"} of an endpoint
    tokens: list[list[Any]] = field(default_factory=list)
    source: str = ""  # what answered
    pair: str = ""  # answers to one question by two sources share it
    finish: str = ""  # stop, length, stopped, error; "" while it is being written, or the process died
    error: str = ""
    prompt_tokens: int = 0
    seconds: float = 0.0  # of the answer
    first: float = 0.0  # until its first token
    settings: dict[str, Any] = field(default_factory=dict)


_FIELDS = {f.name: f for f in dataclasses.fields(Node)}
_KINDS: dict[str, tuple[type, ...]] = {name: (type(getattr(Node("", "", ""), name)),) for name in _FIELDS} | {n: (int, float) for n in ("seconds", "first")}


@dataclass
class Conversation:
    """The messages of one conversation, and which of the branches is looked at."""

    id: str
    title: str
    created: float
    system: str = ""
    nodes: dict[str, Node] = field(default_factory=dict)  # in order of making
    chosen: dict[str, str] = field(default_factory=dict)  # parent -> child

    def children(self, parent: str) -> list[Node]:
        return [n for n in self.nodes.values() if n.parent == parent]

    def path(self) -> list[Node]:
        """From the first message down the chosen branches; where none was chosen, the newest."""
        out: list[Node] = []
        at, seen = "", {""}
        while found := self.children(at):
            chosen = self.chosen.get(at)
            node = next((n for n in found if n.id == chosen), found[-1])
            if node.id in seen:  # a file somebody wrote by hand
                break
            out.append(node)
            seen.add(at := node.id)
        return out

    def above(self, node: Node) -> list[Node]:
        """The messages before `node`, the first one first."""
        out: list[Node] = []
        while node.parent in self.nodes and len(out) <= len(self.nodes):
            node = self.nodes[node.parent]
            out.insert(0, node)
        return out

    def messages(self, upto: list[Node]) -> list[dict[str, str]]:
        """For a model: the system message, and messages that say something."""
        head = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return head + [{"role": n.role, "content": n.text} for n in upto if n.text]


def default_folder() -> Path:
    """Where conversations are kept unless said otherwise: XDG's place for a user's data."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "freedive" / "conversations"


class Store:
    """A folder of conversations. Names of files are made here, never taken from a request: an id is 32 hexadecimal digits or nothing."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._deleted: set[str] = set()  # an answer may still be coming in, or another tab be open
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise UserError(f"conversations cannot be kept in {folder}: {error.strerror}", hint="choose another folder: --conversations FOLDER") from None

    def _path(self, id: str) -> Path:
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise UserError("no such conversation")
        return self.folder / f"{id}.jsonl"

    def list(self) -> list[tuple[str, str, float]]:
        """(id, title, when it was last written to) of all, the newest first."""
        out = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(".jsonl") and _ID.fullmatch(entry.name[:-6]) and entry.is_file(follow_symlinks=False):
                try:
                    with open(entry.path, encoding="utf-8", errors="replace") as file:
                        head = json.loads(file.readline(1 << 20))
                    out.append((entry.name[:-6], str(head["title"])[:200], entry.stat().st_mtime))
                except (OSError, ValueError, KeyError, TypeError):
                    continue
        return sorted(out, key=lambda item: -item[2])

    def new(self, title: str, system: str = "") -> Conversation:
        """A new one; there is no file until something is written to it."""
        return Conversation(secrets.token_hex(16), title_of(title), time.time(), system)

    def load(self, id: str) -> Conversation:
        """What the file says. Lines that are no record are passed over. Raises UserError if there is none."""
        path = self._path(id)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError:
            raise UserError("no such conversation") from None
        if len(data) > MAX_BYTES:
            raise UserError(f"this conversation is larger than {MAX_BYTES >> 20} MB")
        c = Conversation(id, "", 0.0)
        for line in data.split(b"\n"):
            try:
                record = json.loads(line)
                kind = record["kind"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if kind == "conversation":
                c.title, c.system = str(record.get("title", "")), str(record.get("system", ""))
                c.created = record["created"] if isinstance(record.get("created"), (int, float)) else 0.0
            else:
                _apply(c, kind, record)
        return c

    def write(self, c: Conversation, *records: dict[str, Any], sync: bool = True) -> None:
        """Append records; the conversation's own head goes first if the file is new. Raises UserError if the disk is full, or it was deleted."""
        path = self._path(c.id)
        self._check_there(c)
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                size = os.fstat(file).st_size
                torn = size and os.pread(file, 1, size - 1) != b"\n"
                lines = [] if size else [_line(_head(c))]
                write_all(file, (b"\n" if torn else b"") + b"".join([*lines, *map(_line, records)]))
                if sync:
                    os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise UserError(f"the conversation could not be saved: {error.strerror}") from None

    def save(self, c: Conversation, node: Node, choose: bool = True) -> None:
        """Keep a message, and look at it from now on."""
        c.nodes[node.id] = node
        records: list[dict[str, Any]] = [{"kind": "node", **dataclasses.asdict(node)}]
        if choose and c.chosen.get(node.parent) != node.id:
            c.chosen[node.parent] = node.id
            records.append({"kind": "choose", "id": node.id})
        self.write(c, *records)

    def choose(self, c: Conversation, node: Node) -> None:
        """From now on this branch is the one shown."""
        c.chosen[node.parent] = node.id
        self.write(c, {"kind": "choose", "id": node.id}, sync=False)

    def rename(self, c: Conversation, title: str) -> None:
        """Before anything is written."""
        c.title = title_of(title)

    def retitle(self, c: Conversation, title: str) -> None:
        """Write the file again, with another title and without what later records replaced; the old one stays until the new one is whole."""
        c.title = title_of(title)
        self.rewrite(c)

    def rewrite(self, c: Conversation) -> None:
        """Write the file again with this title and system message. Its messages are the file's own: another tab may have added some."""
        self._check_there(c)
        kept = self.load(c.id) if self._path(c.id).exists() else c
        lines = [_line(_head(c)), *(_line({"kind": "node", **dataclasses.asdict(n)}) for n in kept.nodes.values())]
        lines += [_line({"kind": "choose", "id": child}) for child in kept.chosen.values()]
        try:
            write_atomic(self._path(c.id), lines)
            os.chmod(self._path(c.id), 0o600)
        except OSError as error:
            raise UserError(f"the conversation could not be saved: {error.strerror}") from None

    def delete(self, id: str) -> None:
        """Remove its file; nothing is written to it any more."""
        path = self._path(id)
        self._deleted.add(id)
        path.unlink(missing_ok=True)

    def _check_there(self, c: Conversation) -> None:
        if c.id in self._deleted:
            raise UserError("this conversation was deleted")


def node(parent: str, role: str, text: str = "", **more: Any) -> Node:
    """A new message."""
    return Node(secrets.token_hex(6), parent, role, text, **more)


def title_of(text: str) -> str:
    """A line for the list."""
    line = " ".join(text.split())
    return (line[:60].rstrip() + "…" if len(line) > 60 else line) or "New conversation"


def _apply(c: Conversation, kind: str, record: dict[str, Any]) -> None:
    id = record.get("id")
    if not isinstance(id, str) or not _NODE.fullmatch(id):
        return
    if kind == "node":
        fields: dict[str, Any] = {k: v for k, v in record.items() if k in _KINDS and isinstance(v, _KINDS[k])}
        fields["tokens"] = _tokens(fields.get("tokens"))
        fields["tools"] = [t for t in fields.get("tools", []) if isinstance(t, dict)]
        if {"parent", "role"} <= fields.keys() and fields["role"] in ("user", "assistant"):
            c.nodes[id] = Node(**fields)
    elif id in c.nodes and kind == "delta":
        c.nodes[id].text += str(record.get("text", ""))
        c.nodes[id].reasoning += str(record.get("reasoning", ""))
        c.nodes[id].tokens += _tokens(record.get("tokens"))
    elif id in c.nodes and kind == "choose":
        c.chosen[c.nodes[id].parent] = id


def _tokens(value: Any) -> list[list[Any]]:
    """The tokens of a record; none of them where one is not what it should be, for half of them would be another answer."""
    number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)
    id = lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 0
    tops = lambda x: isinstance(x, list) and all(isinstance(a, list) and len(a) == 2 and id(a[0]) and number(a[1]) for a in x)
    fine = isinstance(value, list) and all(isinstance(t, list) and len(t) == 3 and id(t[0]) and (t[1] is None or number(t[1])) and tops(t[2]) for t in value)
    return value if fine else []


def _head(c: Conversation) -> dict[str, Any]:
    return {"kind": "conversation", "version": 1, "id": c.id, "title": c.title, "created": c.created, "system": c.system}


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace") + b"\n"
