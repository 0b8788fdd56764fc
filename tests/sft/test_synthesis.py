"""`freedive synthesize`: what is alike and what is dropped; rows with their provenance; the labeller's sheet is told and not written down; a run
whose service failed in the middle goes on and writes what it would have written; our own engine and our own server as generators."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.cli import main
from freedive.eval import asker
from freedive.sft.rows import conversations
from freedive.sft.synthesis import filters, prompts
from freedive.sft.synthesis.novelty import Pool, common_subsequence, rouge_l, words
from freedive.sft.synthesis.seeds import read_seeds
from freedive.sft.synthesis.stage import SynthesizeConfig, run

few = st.lists(st.sampled_from("abcd"), max_size=12)


@given(few, few)
def test_the_common_subsequence_is_the_tables(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if x == y else max(table[i - 1][j], table[i][j - 1])
    assert common_subsequence(a, b) == table[-1][-1]


@given(st.lists(few.map(" ".join), min_size=1, max_size=6), few.map(" ".join))
def test_the_nearest_is_the_best_of_all(known, text):
    best = max(rouge_l(words(text), words(other)) for other in known)
    assert Pool(known).nearest(text) == best
    assert (Pool(known).nearest(text, 0.7) >= 0.7) == (best >= 0.7)
    assert rouge_l(words(text), words(text)) == (1.0 if text else 0.0)


def test_items_of_lists():
    assert filters.items("9. Name a river.\n10) Say why.\n\nBecause it is there.\nTask 11: Count to ten.") == [
        "Name a river.",
        "Say why.",
        "Count to ten.",
    ]
    assert filters.items("Name a river.\n\nThe Rhine.") == ["Name a river."] and filters.items("\n") == []


@pytest.mark.parametrize(
    ("text", "why"),
    [("Name a river.", ""), ("Go", "too short"), ("word " * 200, "too long"), ("- name a river", "begins with a mark"), ("Draw a picture of a cat", "about what is not text"),
     ("say it once more and " * 6, "repeats itself")],
)  # fmt: skip
def test_instructions_dropped(text, why):
    assert filters.instruction_fault(text) == why


@pytest.mark.parametrize(
    ("said", "why"),
    [("The Rhine.", ""), ("Rhine", ""), ("", "empty answer"), ("it flows " + "on and on through many a land " * 3 + "and then", "answer cut off"),
     ("I'm sorry, I don't know.", "refusal"), ("Name a river", "answer repeats the question"), ("so\nso\nso\nso\nno", "answer repeats itself")],
)  # fmt: skip
def test_answers_dropped(said, why):
    assert filters.answer_fault("Name a river.", said, 24) == why
    assert filters.answer_fault("Name a river.", "I don't know.", 24, refusals=True) == ""


def test_words_of_a_simulated_user():
    assert prompts.users_words('User: "And then?"\nAssistant: Then nothing.') == "And then?"
    assert filters.turn_fault("And then what?", ["Name a river."]) == "" and filters.turn_fault("Name a river!", ["Name a river."]) == "said before"
    assert filters.turn_fault("Of course, here it is.", []) == "speaks as the assistant" and filters.turn_fault(" ", []) == "nothing said"


# ---- the verb, with a service -------------------------------------------------------------------------------------------------------------------


class Writer(BaseHTTPRequestHandler):
    """New tasks depend on the seed; answers name their question; it fails for good from request `server.most` on."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if len(self.server.bodies) > self.server.most:
            self.send_error(400, "no more")
            return
        asked, seed = body["messages"][-1]["content"], body["seed"]
        if "Come up with new tasks" in asked:
            said = f"9. Tell {' '.join(hashlib.sha256(f'{seed} {i}'.encode()).hexdigest()[:5] for i in range(6))}.\n10. {SEEDS[0]}\n11. Draw {seed} flowers."
        elif "what the user says next" in asked:
            said = f"{('And', 'Then')[asked.count('User:') - 1]} {seed}?"
        else:
            said = f"About {' '.join(asked.split()[:3])} there is much to say, {seed} times over."
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


SEEDS = [
    "Explain how a river finds its way to the sea.", "Which bridges are older than cars?", "Write two lines about clouds.", "What makes bread rise in an oven?",
    "Is money an idea or a thing?", "Teach me the first move of chess.", "Why does light bend in water?", "Compare wool with cotton.", "List uses of salt, please.",
    "Who needs music most of all?",
]  # fmt: skip


@pytest.fixture
def service():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Writer)
    server.bodies, server.most = [], 10**9
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f"http://127.0.0.1:{server.server_port}/v1"
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def seeds(tmp_path):
    path = tmp_path / "seeds.txt"
    path.write_text("\n".join(SEEDS))
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_new_instructions_with_provenance(tmp_path, seeds, service):
    out = run(SynthesizeConfig(seeds, service.address, service_model="big", rows=40, out=tmp_path / "out"))
    made = rows(out / "sft.jsonl")
    assert len(made) == 40 and all(re.match("Tell ", r["messages"][0]["content"]) for r in made)
    known = {s.id for s in read_seeds(seeds)}
    for i, row in enumerate(made):
        assert row["meta"]["generator"] == "big" and row["meta"]["prompts"] == prompts.VERSION and len(row["meta"]["seeds"]) == 8
        for name in row["meta"]["seeds"]:
            assert name in known or (name.startswith("made:") and int(name[5:]) < i), "examples are seeds, or rows made before"
    assert any(name.startswith("made:") for row in made for name in row["meta"]["seeds"])
    reasons = [row["reason"] for row in rows(out / "rejected.jsonl")]
    assert {"like one there is", "about what is not text"} == set(reasons)
    assert json.loads((out / "run.json").read_text())["metrics"]["dropped/like_one_there_is"] == reasons.count("like one there is")
    assert all(conversations(row) == [row["messages"]] for row in made), "ready for `freedive sft`"


def test_the_sheet_is_told_and_not_written(tmp_path, seeds, service):
    sheet = tmp_path / "sheet.md"
    sheet.write_text("Answer like a pirate.")
    out = run(SynthesizeConfig(seeds, service.address, kind="answers", persona=sheet, out=tmp_path / "out"))
    assert all(body["messages"][0] == {"role": "system", "content": "Answer like a pirate."} for body in service.bodies)
    made = rows(out / "sft.jsonl")
    assert [r["messages"][0]["content"] for r in made] == SEEDS and all([m["role"] for m in r["messages"]] == ["user", "assistant"] for r in made)
    assert len({r["meta"]["persona"] for r in made}) == 1 and "pirate" not in (out / "sft.jsonl").read_text()


def test_dialogues_take_turns(tmp_path, seeds, service):
    out = run(SynthesizeConfig(seeds, service.address, kind="dialogue", rows=15, out=tmp_path / "out"))
    made = rows(out / "sft.jsonl")
    assert len(made) == 15 and made[0]["messages"][0] == made[10]["messages"][0] and made[0]["messages"][1] != made[10]["messages"][1], (
        "seeds again, sampled anew"
    )
    assert all([m["role"] for m in r["messages"]] == ["user", "assistant"] * 3 for r in made)


def test_nothing_like_what_is_kept_out(tmp_path, seeds, service):
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": SEEDS[3], "answer": "flour"}) + "\n")
    out = run(SynthesizeConfig(seeds, service.address, kind="answers", keep_out=exam, out=tmp_path / "out"))
    asked = [r["messages"][0]["content"] for r in rows(out / "sft.jsonl")]
    assert SEEDS[3] not in asked and rows(out / "rejected.jsonl")[0]["reason"] == "like what is kept out"


@pytest.mark.parametrize("kind", ["self-instruct", "dialogue"])
def test_a_run_that_was_cut_off_goes_on(tmp_path, seeds, service, monkeypatch, kind):
    monkeypatch.setattr(
        asker.Service,
        "__init__",
        lambda self, url, name="": self.__dict__.update(url=url + "/chat/completions", name=name, parallel=1, timeout=30.0, tries=1),
    )
    arguments = ["synthesize", str(seeds), "--generator", service.address, "--kind", kind, "--rows", "70", "--out"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    for most in (90, 60, 10**9):
        service.bodies, service.most = [], most
        code = main([*arguments, str(tmp_path / "cut")])
        assert code == (2 if most < 10**9 else 0)
        assert (tmp_path / "cut").exists() == (code == 0)
    for name in ("sft.jsonl", "rejected.jsonl"):
        if (tmp_path / "whole" / name).exists():
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_seeds_in_the_usual_forms(tmp_path):
    path = tmp_path / "seeds.jsonl"
    forms = [{"id": "a", "instruction": "Add them.", "instances": [{"input": "2 and 2", "output": "4"}]}, {"instruction": "Add them.", "input": "3 and 3"},
             {"prompt": "Add 4."}, {"question": "Is it 5?", "answer": "no"}, {"messages": [{"role": "user", "content": "Hello"}]}]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in forms))
    assert [s.text for s in read_seeds(path)] == ["Add them.\n\n2 and 2", "Add them.\n\n3 and 3", "Add 4.", "Is it 5?", "Hello"] and read_seeds(path)[
        0
    ].id == "a"


def test_bad_input_is_told(tmp_path, seeds, service, capsys):
    empty, odd = tmp_path / "empty.txt", tmp_path / "odd.jsonl"
    empty.write_text("\n")
    odd.write_text('{"text": "no"}\n')
    out = ["--out", str(tmp_path / "out")]
    for arguments, says in [
        ([str(tmp_path / "none.txt"), "--generator", service.address], "does not exist"),
        ([str(empty), "--generator", service.address], "holds no instruction"),
        ([str(odd), "--generator", service.address], "line 1: no instruction"),
        ([str(seeds), "--generator", str(tmp_path / "none.gguf")], "none.gguf"),
        ([str(seeds), "--generator", service.address, "--persona", str(tmp_path / "none.md")], "could not be read"),
        ([str(seeds), "--generator", service.address, "--rows", "-1"], "rows"),
        ([str(seeds), "--generator", service.address, "--kind", "poems"], "poems"),
        ([str(seeds), "--generator", "http://127.0.0.1:9/v1"], "gave no answer"),
    ]:
        if "9/v1" in arguments[-1]:
            asker.time.sleep, kept = lambda s: None, asker.time.sleep
        assert main(["synthesize", *arguments, *out]) == 2, arguments
        assert says in capsys.readouterr().err, arguments
        assert not (tmp_path / "out").exists()
        if "9/v1" in arguments[-1]:
            asker.time.sleep = kept
