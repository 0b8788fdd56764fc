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
from freedive.eval.asker import OurModel, Reply, Service
from freedive.inference.load import LM
from freedive.model import DecoderConfig, Model
from freedive.runs import UserError
from freedive.sft.rows import conversations
from freedive.sft.synthesis import filters, prompts
from freedive.sft.synthesis.novelty import Answers, Pool, common_subsequence, rouge_l, words
from freedive.sft.synthesis.seeds import read_seeds
from freedive.sft.synthesis.stage import SynthesizeConfig, run
from freedive.tokenizer import byte_tokenizer

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
    assert filters.items("9. Name a river.\n10. Say wh", cut_off=True) == ["Name a river."]


@pytest.mark.parametrize(
    ("text", "why"),
    [("Sure! Here is a new task", "speaks as the assistant"), ("Name a river.", ""), ("Go", "too short"), ("word " * 200, "too long"), ("- name a river", "begins with a mark"), ("Draw a picture of a cat", "about what is not text"),
     ("say it once more and " * 6, "repeats itself")],
)  # fmt: skip
def test_instructions_dropped(text, why):
    assert filters.instruction_fault(text) == why


@pytest.mark.parametrize(
    ("said", "why"),
    [("The Rhine.", ""), ("Rhine", ""), ("", "empty answer"), ("it flows on and on", ""),
     ("I'm sorry, I don't know.", "refusal"), ("Name a river", "answer repeats the question"), ("so\nso\nso\nso\nno", "answer repeats itself")],
)  # fmt: skip
def test_answers_dropped(said, why):
    assert filters.answer_fault("Name a river.", Reply(said), filters.Rules()) == why
    assert filters.answer_fault("Name a river.", Reply("I don't know."), filters.Rules(refusals=True)) == ""
    assert filters.answer_fault("Name a river.", Reply(said, "length"), filters.Rules()) == "answer cut off"


def test_a_labellers_rules():
    rules = filters.Rules(min_words=2, max_words=3, require=(re.compile("R"),), forbid=(re.compile(r"\?$"),))
    long, against = "not as long as the labeller's rules say", "against the labeller's rules"
    assert [rules.fault(said) for said in ("The Rhine", "Rhine", "The Rhine of course", "the river", "The Rhine?")] == ["", long, long, against, against]


def test_answers_given_before():
    known = [hashlib.sha256(str(i).encode()).hexdigest()[:40] for i in range(600)]
    texts = [" ".join(name[i : i + 4] for i in range(0, 40, 2)) for name in known]
    pool = Answers(texts)
    assert pool.count == 600 and pool.nearest(texts[599].title() + "!") == 1.0 and pool.nearest(" ".join(known[:9])) < 0.1
    assert all(Answers([short]).nearest(short) == 0.0 for short in ("yes", "It is five or six of them, I think."))


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
        self.server.keys.add(self.headers.get("Authorization"))
        if len(self.server.bodies) > self.server.most:
            self.send_error(403, "no more")
            return
        asked, seed = body["messages"][-1]["content"], body["seed"]
        if "Come up with new tasks" in asked:
            said = f"9. Tell {' '.join(hashlib.sha256(f'{seed} {i}'.encode()).hexdigest()[:5] for i in range(6))}.\n10. {SEEDS[0]}\n11. Draw {seed} flowers."
        elif "what the user says next" in asked:
            said = f"{('And', 'Then')[asked.count('User:') - 1]} {seed}?"
        else:
            said = f"About {' '.join(asked.split()[:3])} there is much to say, {seed} times over."
        if self.server.say:
            said = self.server.say(body) or said
        finish = "length" if said.endswith("...") else "stop"
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": finish}]}).encode()
        self.send_response(400 if said == "too long" else 200)
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
    server.bodies, server.most, server.keys, server.say = [], 10**9, set(), None
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
        lambda self, url, name="", parallel=8, key="": self.__dict__.update(url=url + "/chat/completions", name=name, parallel=1, timeout=30.0, tries=1, key=key),
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


def test_what_a_service_cuts_off_or_does_not_take_is_left_out(tmp_path, seeds, service):
    service.say = lambda body: {SEEDS[0]: "It runs downhill ...", SEEDS[1]: "too long", SEEDS[2]: ""}.get(body["messages"][-1]["content"])
    out = run(SynthesizeConfig(seeds, service.address, kind="answers", out=tmp_path / "out"))
    assert [(r["instruction"], r["reason"]) for r in rows(out / "rejected.jsonl")] == [(SEEDS[0], "answer cut off"), (SEEDS[1], "longer than the generator takes")]
    assert len(rows(out / "sft.jsonl")) == len(SEEDS) - 2
    service.say = lambda body: "too long"
    with pytest.raises(UserError, match="400"):  # not one is taken: something else is wrong
        run(SynthesizeConfig(seeds, service.address, kind="answers", out=tmp_path / "none"))


def test_tries_until_the_labellers_rules_are_kept(tmp_path, seeds, service):
    service.say = lambda body: "Yes." if body["seed"] % 3 == 0 else None
    how = {"kind": "answers", "max_words": 2, "out": tmp_path / "out"}
    out = run(SynthesizeConfig(seeds, service.address, **how, tries=60))
    assert {r["messages"][1]["content"] for r in rows(out / "sft.jsonl")} == {"Yes."} and len(rows(out / "sft.jsonl")) == len(SEEDS)
    assert len({body["seed"] for body in service.bodies}) == len(service.bodies)


def test_every_seed_samples_anew(tmp_path, seeds, service):
    said = []
    for seed in (0, 1, 2, 1):
        service.bodies = []
        run(SynthesizeConfig(seeds, service.address, kind="answers", seed=seed, out=tmp_path / f"{len(said)}"))
        said.append({body["seed"] for body in service.bodies})
        assert len(said[-1]) == len(SEEDS) and all(0 <= s < 2**31 for s in said[-1])
    assert said[1] == said[3] and not said[0] & said[1] and not said[1] & said[2]


def test_a_copy_of_a_seed_is_known_whatever_its_input(tmp_path, service):
    """ROUGE-L is of instructions, as in Self-Instruct: beside a long input the same instruction would look new."""
    path = tmp_path / "seeds.jsonl"
    path.write_text(json.dumps({"id": "s", "instruction": "Sort these words by length.", "instances": [{"input": "word " * 40, "output": "-"}]}) + "\n")
    service.say = lambda body: "9. Sort these words by length.\n10. Name one thing that floats." if "Come up with" in body["messages"][-1]["content"] else None
    out = run(SynthesizeConfig(path, service.address, rows=1, out=tmp_path / "out"))
    assert "like one there is" in {r["reason"] for r in rows(out / "rejected.jsonl")} and "float" in rows(out / "sft.jsonl")[0]["messages"][0]["content"]
    assert "word word" not in service.bodies[0]["messages"][-1]["content"], "inputs are not shown: small models copy them"


def test_line_separators_within_rows_survive_a_stop(tmp_path, seeds, service, monkeypatch):
    monkeypatch.setattr(asker.time, "sleep", lambda s: None)
    service.say = lambda body: None if "Come up with" in body["messages"][-1]["content"] else f"One\u2028two\x85three\u2029four, {body['seed']} times."
    for name, stops in (("whole", [10**9]), ("cut", [75, 10**9])):
        for most in stops:
            service.bodies, service.most = [], most
            code = main(["synthesize", str(seeds), "--generator", service.address, "--rows", "40", "--out", str(tmp_path / name)])
            assert code == (0 if most == 10**9 else 2)
    assert (tmp_path / "whole" / "sft.jsonl").read_bytes() == (tmp_path / "cut" / "sft.jsonl").read_bytes()


def test_a_key_of_its_own_and_another_model_as_user(tmp_path, seeds, service, monkeypatch):
    monkeypatch.setenv("MY_KEY", "abc")
    other = ThreadingHTTPServer(("127.0.0.1", 0), Writer)
    other.bodies, other.most, other.keys, other.say = [], 10**9, set(), None
    threading.Thread(target=other.serve_forever, daemon=True).start()
    try:
        c = SynthesizeConfig(seeds, service.address, api_key_env="MY_KEY", kind="dialogue", user=f"http://127.0.0.1:{other.server_port}/v1", out=tmp_path / "out")
        out = run(c)
    finally:
        other.shutdown()
        other.server_close()
    assert service.keys == other.keys == {"Bearer abc"} and "abc" not in (out / "run.json").read_text()
    users = "what the user says next"
    assert all(users in b["messages"][-1]["content"] for b in other.bodies) and other.bodies and not any(users in b["messages"][-1]["content"] for b in service.bodies)


def test_thoughts_are_no_part_of_an_answer(tmp_path, seeds, service):
    service.say = lambda body: "<think>What would they like?</think>\n\nA short answer."
    out = run(SynthesizeConfig(seeds, service.address, kind="answers", out=tmp_path / "out"))
    assert {r["messages"][1]["content"] for r in rows(out / "sft.jsonl")} == {"A short answer."}


def test_a_key_goes_nowhere_else(service):
    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(302)
            self.send_header("Location", service.address + "/chat/completions")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="302"):
            asker.Service(f"http://127.0.0.1:{other.server_port}/v1").ask([[{"role": "user", "content": "Hello"}]])
        other.shutdown()
    assert not service.bodies


def test_an_exam_in_a_form_that_is_not_read_is_an_error(tmp_path, seeds, service):
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"q": SEEDS[3], "a": "flour"}) + "\n")
    out = run(SynthesizeConfig(seeds, service.address, kind="answers", keep_out=exam, out=tmp_path / "out"))
    assert SEEDS[3] not in [r["messages"][0]["content"] for r in rows(out / "sft.jsonl")]
    exam.write_text(json.dumps({"sentence": SEEDS[3]}) + "\n")
    with pytest.raises(UserError, match="no instruction"):
        run(SynthesizeConfig(seeds, service.address, kind="answers", keep_out=exam, out=tmp_path / "other"))


def test_our_engine_answers_each_as_if_it_were_alone():
    tok = byte_tokenizer()
    config = DecoderConfig(n_layer=1, d_model=32, n_head=2, n_kv_head=1, head_dim=16, d_ff=64, vocab_size=tok.vocab_size, max_positions=256)
    own = OurModel(LM(Model(config, max_tokens=2048, max_seqs=16, threads=2).init(1), tok))
    asked = [[{"role": "user", "content": f"Number {i}{'!' * i}"}] for i in range(5)] + [[{"role": "user", "content": "long " * 90}]]
    how = {"temperature": 0.9, "max_new_tokens": 12}
    together = own.replies(asked, **how, seeds=list(range(6)))
    assert together[5] == Reply("", "refused") and together[:5] == [own.replies([a], **how, seeds=[i])[0] for i, a in enumerate(asked[:5])]
    assert {r.finish for r in together[:5]} <= {"stop", "length"}


def test_requests_that_wait_are_not_sent_after_a_stop(service):
    def say(body):
        if body["messages"][-1]["content"] == "0":
            return "too long"  # 400: told at once
        threading.Event().wait(0.05)

    service.say = say
    asked = [[{"role": "user", "content": str(i)}] for i in range(40)]
    with pytest.raises(UserError, match="400"):
        Service(service.address, parallel=2).ask(asked)
    sent = len(service.bodies)
    threading.Event().wait(0.2)
    assert sent < 10 and len(service.bodies) <= sent + 2


def test_seeds_from_conversations_of_any_form(tmp_path, shared_data):
    path = tmp_path / "seeds.jsonl"
    forms = [{"conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "1"}]}, {"data": ["Two?", "2"]},
             {"prompt": {"message_id": "m", "role": "prompter", "text": "Three?", "replies": [{"role": "assistant", "text": "3", "rank": 0, "replies": []}]}}]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in forms))
    assert [(s.id, s.text) for s in read_seeds(path)] == [("seeds.jsonl:1", "One?"), ("seeds.jsonl:2", "Two?"), ("m", "Three?")]
    real = read_seeds(shared_data / "sft" / "self_instruct_seed_175.jsonl.gz")
    assert len(real) == 175 and all(s.text.startswith(s.task) for s in real) and sum(s.text != s.task for s in real) == 125
    assert len(read_seeds(shared_data / "sft" / "oasst_en_100_trees.jsonl.gz")) == 100


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
    (latin := tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    odd.write_text('{"text": "no"}\n')
    out = ["--out", str(tmp_path / "out")]
    for arguments, says in [
        ([str(tmp_path / "none.txt"), "--generator", service.address], "does not exist"),
        ([str(empty), "--generator", service.address], "holds no instruction"),
        ([str(odd), "--generator", service.address], "line 1: no instruction"),
        ([str(seeds), "--generator", str(tmp_path / "none.gguf")], "none.gguf"),
        ([str(seeds), "--generator", service.address, "--persona", str(tmp_path / "none.md")], "could not be read"),
        ([str(seeds), "--generator", service.address, "--rows", "-1"], "rows"),
        ([str(latin), "--generator", service.address], "not UTF-8"),
        ([str(seeds), "--generator", service.address, "--require", "("], "no regular expression"),
        ([str(seeds), "--generator", service.address, "--tries", "2", "--temperature", "0"], "same answer"),
        ([str(seeds), "--generator", service.address, "--min-words", "3", "--max-words", "2"], "no answer is both"),
        ([str(seeds), "--generator", service.address, "--user", "x"], "user of a dialogue"),
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
