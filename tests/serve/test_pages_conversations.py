"""Saved conversations: trees that survive whatever happens to their file, and names that cannot leave their folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("nicegui", reason="the pages need nicegui: pip install 'freedive[serve]'")
from serve_cases import TOKENIZER

from freedive.runs import UserError
from freedive.serve.pages.conversations import Conversation, Store, default_folder, node, title_of
from freedive.serve.pages.parts import token_items
from freedive.serve.pages.turns import figures_of


def talk(store: Store) -> Conversation:
    c = store.new("Why is the sky blue?", "Be brief.")
    q = node("", "user", "Why is the sky blue?")
    a = node(q.id, "assistant", "Scattering.", source="m", tokens=[[3, -0.5, [[3, -0.5], [4, -1.0]]]])
    b = node(q.id, "assistant", "Rayleigh.", reasoning="hm")
    for one in (q, a, b):
        store.save(c, one)
    return c


def test_what_was_saved_is_loaded(tmp_path: Path):
    store = Store(tmp_path / "new" / "folder")
    c = talk(store)
    again = store.load(c.id)
    assert again == c and again.messages(again.path())[0] == {"role": "system", "content": "Be brief."}
    assert [n.text for n in again.path()] == ["Why is the sky blue?", "Rayleigh."]
    store.choose(c, next(n for n in c.nodes.values() if n.text == "Scattering."))
    assert [n.text for n in store.load(c.id).path()][-1] == "Scattering."
    assert [(id, title) for id, title, _ in store.list()] == [(c.id, "Why is the sky blue?")]
    store.retitle(c, "Sky")
    assert store.load(c.id) == c and store.list()[0][1] == "Sky"
    assert not list((tmp_path / "new" / "folder").glob("*.tmp"))
    store.delete(c.id)
    assert store.list() == []
    with pytest.raises(UserError, match="no such"):
        store.load(c.id)


def test_two_tabs_keep_each_other_s_messages(tmp_path: Path):
    store = Store(tmp_path)
    ours = talk(store)
    theirs = store.load(ours.id)
    more = node(theirs.path()[-1].id, "user", "And at dusk?")
    store.save(theirs, more)
    answer = node(more.id, "assistant")
    store.save(theirs, answer)
    store.write(theirs, {"kind": "delta", "id": answer.id, "text": "Red"}, sync=False)
    ours.system = "Be long."
    store.retitle(ours, "Sky")  # by a tab that knows nothing of the new question
    store.write(theirs, {"kind": "delta", "id": answer.id, "text": "der."}, sync=False)
    again = store.load(ours.id)
    assert (again.title, again.system) == ("Sky", "Be long.") and [n.text for n in again.path()][-2:] == ["And at dusk?", "Redder."]


def test_what_was_deleted_stays_so(tmp_path: Path):
    """Though an answer is still coming in, or another tab has it open."""
    store = Store(tmp_path)
    c = talk(store)
    store.delete(c.id)
    one = next(iter(c.nodes.values()))
    for late in (lambda: store.save(c, one), lambda: store.write(c, {"kind": "delta", "id": one.id, "text": "x"}), lambda: store.retitle(c, "x"), lambda: store.choose(c, one)):
        with pytest.raises(UserError, match="deleted"):
            late()
    assert store.list() == [] and not list(tmp_path.iterdir())


def test_an_answer_cut_at_any_byte_is_a_prefix_of_it(tmp_path: Path):
    store = Store(tmp_path)
    c = talk(store)
    q = next(iter(c.nodes))
    growing = node(q, "assistant")
    store.save(c, growing)
    for piece in ("Because ", "the air 🌊 ", "scatters", " it."):
        store.write(c, {"kind": "delta", "id": growing.id, "text": piece, "tokens": [[len(piece), -0.5, [[len(piece), -0.5]]]]}, sync=False)
    path = tmp_path / f"{c.id}.jsonl"
    whole = path.read_bytes()
    begin = whole.index(b'"delta"') - 9
    for size in range(begin, len(whole) + 1):
        path.write_bytes(whole[:size])
        text = store.load(c.id).nodes[growing.id].text
        assert "Because the air 🌊 scatters it.".startswith(text)
        tokens = store.load(c.id).nodes[growing.id].tokens
        assert [t[0] for t in tokens] == [8, 10, 8, 4][: len(tokens)] and (len(tokens) == 4) == text.endswith("it.")
    path.write_bytes(whole[:-3])  # torn: what is appended next is a line of its own
    store.write(c, {"kind": "delta", "id": growing.id, "text": "!"})
    assert store.load(c.id).nodes[growing.id].text == "Because the air 🌊 scatters!"


@given(st.text(max_size=40))
def test_no_name_leaves_the_folder(tmp_path_factory: pytest.TempPathFactory, id: str):
    store = Store(tmp_path_factory.mktemp("c"))
    for call in (store.load, store.delete):
        with pytest.raises(UserError, match="no such"):
            call(id)


@pytest.mark.parametrize("id", ["../x", "/etc/passwd", "a" * 31, "A" * 32, "0" * 32 + "\n", "0" * 31 + "/", ""])
def test_names_that_are_none(tmp_path: Path, id: str):
    with pytest.raises(UserError, match="no such"):
        Store(tmp_path).load(id)


def test_a_link_is_not_followed(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text('{"kind": "conversation", "title": "secret"}\n')
    store = Store(tmp_path / "c")
    os.symlink(secret, tmp_path / "c" / ("0" * 32 + ".jsonl"))
    assert store.list() == []
    with pytest.raises(UserError):
        store.load("0" * 32)
    with pytest.raises(UserError, match="saved"):
        store.write(Conversation("0" * 32, "t", 0.0), {"kind": "choose", "id": "x"})
    assert secret.read_text().count("\n") == 1


def test_files_are_the_user_s_alone(tmp_path: Path):
    store = Store(tmp_path / "c")
    c = talk(store)
    store.retitle(c, "x")
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "c" / f"{c.id}.jsonl").stat().st_mode & 0o777 == 0o600


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


@given(st.lists(st.dictionaries(st.sampled_from(["kind", "id", "parent", "role", "text", "tokens", "tools", "settings", "seconds"]),
                                st.sampled_from(["node", "delta", "choose", "conversation", "0" * 12, "1" * 12, "user", "assistant", ""]) | json_values), max_size=8))  # fmt: skip
def test_a_file_of_anything_is_a_conversation(tmp_path_factory: pytest.TempPathFactory, records: list):
    store = Store(tmp_path_factory.mktemp("c"))
    (store.folder / ("0" * 32 + ".jsonl")).write_text("".join(json.dumps(r) + "\n" for r in records))
    c = store.load("0" * 32)
    path = c.path()
    assert len(path) <= len(c.nodes)
    for one in path:
        assert len(c.above(one)) <= len(c.nodes)
    c.messages(path)
    store.list()
    for one in c.nodes.values():
        token_items(TOKENIZER, one.tokens)
        figures_of(one)


@pytest.mark.parametrize("tokens", [[[1]], [[1, "x", []]], [[True, 0, []]], [[1, 0, [[1]]]], [[-1, 0, []]], "no list", [[1, -0.5, [[2, None]]]], {"a": 1}])
def test_tokens_that_are_none_are_left_out(tmp_path: Path, tokens: object):
    store = Store(tmp_path)
    c = store.new("x")
    one = node("", "assistant", "kept")
    store.save(c, one)
    store.write(c, {"kind": "delta", "id": one.id, "text": "!", "tokens": tokens})
    again = store.load(c.id).nodes[one.id]
    assert again.text == "kept!" and again.tokens == []


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be kept"):
        Store(tmp_path / "file" / "c")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "freedive" / "conversations"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # which the specification says to ignore
    assert default_folder().is_absolute()


def test_titles():
    assert title_of("  two\n lines ") == "two lines" and title_of("") == "New conversation" and len(title_of("x" * 500)) == 61
