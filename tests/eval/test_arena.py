"""Arena without a page: logs of others, contestants, judges of all kinds, a kill in the middle, and gold order found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from freedive.cli import main
from freedive.eval.arena.contestants import read_contestants
from freedive.eval.arena.log import answer_texts, read_log, to_battles
from freedive.eval.arena.room import Room, read_prompts
from freedive.eval.arena.style import counts
from freedive.eval.pairwise import Pair, judge_pairs, parse
from freedive.runs import UserError

QUALITY = {"oak": 3, "elm": 2, "ash": 1, "fir": 0}


class Fake(BaseHTTPRequestHandler):
    """Contestants whose answers tell how good they are, with some luck by the seed; a judge that reads that; one that always says A; one that rambles."""

    wbufsize = -1  # an answer in one piece
    pause = 0.0
    asked: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Fake.asked.append(body)
        time.sleep(Fake.pause)
        name, said = body["model"], body["messages"][-1]["content"]
        if name in QUALITY:
            luck = body["seed"] * 2654435761 % 1000 / 1000 * 3
            text = f"my worth is {QUALITY[name] + luck:.3f} for {said}"
        elif name == "first":
            text = "I like what I read first. [[A]]"
        elif name == "mute":
            text = "hard to say"
        else:
            worth = [float(w.split("my worth is ")[1].split()[0]) for w in said.split("[Answer ")[1:]]
            text = f"Answer A looked nice, but [[{'A' if worth[0] > worth[1] else 'B'}]]"
        data = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Fake, "pause", 0.0)
    monkeypatch.setattr(Fake, "asked", [])
    server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 64})(("127.0.0.1", 0), Fake)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"question {n}", "answer": n}) + "\n" for n in range(40)))
    Path("gold.py").write_text("def worth(completions, **row):\n    return [float(c.split('my worth is ')[1].split()[0]) for c in completions]\n\n"
                               "def compare(answer_a, answer_b, answer):\n    if answer % 10 == 9:\n        return None\n    a, b = (float(t.split('my worth is ')[1].split()[0]) for t in (answer_a, answer_b))\n"
                               "    return 'tie' if abs(a - b) < 0.3 else 'a' if a > b else 'b'\n\ndef broken(answer_a, answer_b):\n    return 'perhaps'\n")  # fmt: skip
    return tmp_path


def log(folder: str = "arena") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "battles.jsonl").read_text().splitlines()]


def test_arena_order_is_gold_order_by_a_function_and_by_a_model_and_they_agree(room: Path, service: str, capsys: pytest.CaptureFixture[str]):
    players = [f"{service},model={name}" for name in ("fir", "elm", "oak", "ash")]
    assert main(["arena", *players, "--prompts", "prompts.jsonl", "--out", "arena", "--judge", "gold.py:worth", f"judge:{service}", "--judge-name", "wise"]) == 0
    out = capsys.readouterr().out
    told = json.loads(Path("arena/ratings.json").read_text())
    assert [r["model"] for r in told["ratings"]] == ["oak", "elm", "ash", "fir"]
    assert told["battles"] == 480 and told["prompts"] == 40 and told["agreement"] == [{"judges": ["gold.py:worth", "wise"], "battles": 240, "same": 240, "opposite": 0}]
    assert "wise: 240 battles judged" in out and "contradicted itself" not in out
    rows = log()
    assert {r["winner"] for r in rows} == {"model_a", "model_b"} and 0.35 < sum(r["model_a"] < r["model_b"] for r in rows) / 480 < 0.65  # sides are drawn
    assert len({(r["id"], r["judge"]) for r in rows}) == 480
    # both orders were asked, and each answer was written once
    assert sum(b["model"] == "wise" for b in Fake.asked) == 480 and sum(b["model"] in QUALITY for b in Fake.asked) == 160
    page = Path("arena/report.html").read_text()
    assert "oak" in page and "<script" not in page and "Elo" in page
    before = Path("arena/ratings.json").read_bytes()
    assert main(["arena", "--rank", "--out", "arena"]) == 0 and Path("arena/ratings.json").read_bytes() == before
    assert main(["arena", "--rank", "--out", "arena", "--by", "wise", "--only", "oak", "elm"]) == 0
    assert "40 battles of 2 models" in capsys.readouterr().out
    # a new contestant joins: nothing that is there is asked again
    Fake.asked.clear()
    assert main(["arena", *players, f"{service},model=oak,name=oak2,temperature=0.1", "--prompts", "prompts.jsonl", "--out", "arena", "--judge", "gold.py:worth"]) == 0
    assert len(Fake.asked) == 40 and len(log()) == 480 + 160


def test_a_judge_that_likes_the_first_and_one_that_says_nothing(room: Path, service: str, capsys: pytest.CaptureFixture[str]):
    players = [f"{service},model={name}" for name in ("fir", "oak")]
    command = ["arena", *players, "--prompts", "prompts.jsonl", "--out", "arena", "--limit", "10", "--judge", service, "--judge-name"]
    assert main([*command, "first"]) == 0
    assert "it contradicted itself in 10, which are ties" in capsys.readouterr().out
    assert {r["winner"] for r in log()} == {"tie"} and all(set(r["orders"]) == {"model_a", "model_b"} for r in log())
    assert main([*command, "mute"]) == 0
    assert "0 battles judged, 10 without a verdict" in capsys.readouterr().out and len(log()) == 10
    Fake.asked.clear()
    assert main([*command, "mute"]) == 0 and not Fake.asked  # it is not asked again


def test_a_function_of_both_answers_with_ties_and_none(room: Path, service: str, capsys: pytest.CaptureFixture[str]):
    players = [f"{service},model={name}" for name in ("ash", "elm")]
    assert main(["arena", *players, "--prompts", "prompts.jsonl", "--out", "arena", "--judge", "gold.py:compare"]) == 0
    assert "36 battles judged, 4 not applicable" in capsys.readouterr().out and "tie" in {r["winner"] for r in log()}
    assert main(["arena", *players, "--prompts", "prompts.jsonl", "--out", "arena", "--judge", "gold.py:broken"]) == 2
    assert "returned 'perhaps'" in capsys.readouterr().err


def test_killed_in_the_middle_it_goes_on_and_nothing_acknowledged_is_lost(room: Path, service: str):
    players = [f"{service},model={name}" for name in QUALITY]
    command = lambda out: ["arena", *players, "--prompts", "prompts.jsonl", "--out", out, "--judge", service, "--judge-name", "wise"]
    assert main(command("whole")) == 0
    Fake.pause = 0.01
    for wanted in (16, 64, 150):
        process = subprocess.Popen([sys.executable, "-m", "freedive", *command("cut")], stdout=subprocess.DEVNULL, env=os.environ)
        deadline = time.monotonic() + 60
        count = lambda: Path("cut/battles.jsonl").read_bytes().count(b"\n") if Path("cut/battles.jsonl").is_file() else 0
        while count() < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        before = Path("cut/battles.jsonl").read_bytes()
        process.send_signal(signal.SIGKILL)
        process.wait()
        after = Path("cut/battles.jsonl").read_bytes()
        assert after.startswith(before[: before.rfind(b"\n") + 1])
    with open("cut/battles.jsonl", "ab") as file:
        file.write(b'{"id": "torn')
    Fake.pause = 0.0
    assert main(command("cut")) == 0
    strip = lambda rows: [{k: v for k, v in row.items() if k != "time"} for row in rows]
    cut = [json.loads(line) for line in Path("cut/battles.jsonl").read_text().splitlines() if line != '{"id": "torn']
    assert strip(cut) == strip(log("whole"))
    assert Path("cut/ratings.json").read_bytes() == Path("whole/ratings.json").read_bytes()


def test_logs_of_others(tmp_path: Path):
    rows = [
        {"model_a": "x", "model_b": "y", "winner": "model_a", "conversation_a": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "# T\n- **a**\n- b"}],
         "conversation_b": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "short"}]},
        {"model_a": "x", "model_b": "y", "winner": "tie (bothbad)", "conv_metadata": {"sum_assistant_a_tokens": 10, "sum_assistant_b_tokens": 30, "header_count_a": {"h1": 1, "h2": 2},
         "header_count_b": {"h1": 0}, "list_count_a": {"ordered": 1, "unordered": 0}, "list_count_b": {"ordered": 0}, "bold_count_a": {"**": 1}, "bold_count_b": {"**": 0}}},
        {"model_a": "y", "model_b": "x", "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
        {"model_a": "y", "model_b": "x", "winner": "y"},
    ]  # fmt: skip
    (tmp_path / "lmsys.json").write_text(json.dumps([*rows, {"model_a": "x", "model_b": "x", "winner": "tie"}, {"model_a": "x", "model_b": "y", "winner": "none"}]))
    found, wrong = read_log(tmp_path / "lmsys.json")
    assert [b.winner for b in found] == ["model_a", "tie (bothbad)", "model_b", "model_a"] and len(wrong) == 2 and "against itself" in wrong[0] and "winner is 'none'" in wrong[1]
    assert found[0].counts == ((10, 1, 2, 1), (1, 0, 0, 0)) and found[1].counts == ((10, 3, 1, 1), (30, 0, 0, 0))
    assert to_battles(found).score.tolist() == [1, 0.5, 0, 1]
    assert to_battles(found[:2], style=True).style_names == ("length",)  # the other differences are the same in both: nothing to learn from
    with pytest.raises(UserError, match="2 of 4 battles have no answers"):
        to_battles(found, style=True)
    (tmp_path / "b.csv").write_text('model_a,model_b,winner,prompt\nx,y,model_b,"a, b"\nx,y,tie,c\n')
    assert [b.winner for b in read_log(tmp_path / "b.csv")[0]] == ["model_b", "tie"]
    said_again = [{"id": "1", "judge": "ada", "model_a": "x", "model_b": "y", "winner": w} for w in ("model_a", "tie")]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(r) + "\n" for r in said_again) + '{"torn')
    assert [b.winner for b in read_log(tmp_path / "b.jsonl")[0]] == ["tie"]


def test_logs_of_others_lose_no_battle_and_count_what_the_voter_did_not_know(tmp_path: Path):
    """Ids that each file counts from 1 are no names; a vote with the names shown is not blind; CSV's True and its long fields; contents as parts."""
    q = lambda text: [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]
    rows = [
        {"id": 1, "model_a": "x", "model_b": "y", "winner": "model_a", "conversation_a": q("one"), "conversation_b": q("two")},
        {"id": 1, "model_a": "x", "model_b": "z", "winner": "model_a", "conversation_a": q("one"), "conversation_b": q("two")},
        {"id": 1, "model_a": "x", "model_b": "y", "winner": "model_b", "conversation_a": q("three"), "conversation_b": q("two")},
        {"id": 2, "model_a": "x", "model_b": "y", "winner": "tie", "anony": False},
        {"id": 3, "model_a": "x", "model_b": "y", "winner": "tie", "anony": True, "conversation_a": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": [{"type": "text", "text": "a **b**"}, {"type": "image"}]}],
         "conversation_b": q("c")},
    ]  # fmt: skip
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found, wrong = read_log(tmp_path / "b.jsonl")
    assert [(b.model_b, b.winner) for b in found] == [("y", "model_a"), ("z", "model_a"), ("y", "model_b"), ("y", "tie")] and wrong == ["1 battles in which the voter was shown the names (anony: false)"]
    assert found[-1].counts == (counts("a **b**"), counts("c"))
    (tmp_path / "b.jsonl").write_text(json.dumps(rows[3]) + "\n")
    with pytest.raises(UserError, match="shown the names"):
        read_log(tmp_path / "b.jsonl")
    long = "word " * 40_000
    (tmp_path / "b.csv").write_text(f'model_a,model_b,winner_model_a,winner_model_b,winner_tie,anony,response_a,response_b\nx,y,True,False,false,True,"[""{long}"", null]",b\nx,y,0,1.0,,true,a,b\nx,y,0,0,TRUE,False,a,b\nx,y,perhaps,0,0,True,a,b\n')
    found, wrong = read_log(tmp_path / "b.csv")
    assert [b.winner for b in found] == ["model_a", "model_b"] and len(wrong) == 2 and "neither true nor false" in wrong[1] and found[0].counts is not None and found[0].counts[0][0] == 40_000


def test_style_is_of_what_the_two_wrote_themselves():
    """The turns that both conversations begin with were given, headings and all; of a conversation each had alone all turns are its own."""
    given = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "# Given\n- **much**"}, {"role": "user", "content": "And?"}]
    a, b = ([*given, {"role": "assistant", "content": t}] for t in ("mine", "# yours"))
    assert answer_texts(a, b) == ("mine", "# yours") and answer_texts(a, a) == ("mine", "mine") and answer_texts("x", "x") == ("x", "x")
    assert answer_texts(json.dumps(["one", "two"]), json.dumps(["1", "two"])) == ("one\ntwo", "1\ntwo")
    own = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "hm"}, {"role": "user", "content": "R"}, {"role": "assistant", "content": "ha"}]
    assert answer_texts(own, [own[0], {"role": "assistant", "content": "oh"}, *own[2:]]) == ("hm\nha", "oh\nha")


def test_a_changed_judge_is_asked_again_and_what_it_said_before_does_not_count(room: Path, service: str, capsys: pytest.CaptureFixture[str]):
    players = [f"{service},model={name}" for name in ("fir", "oak")]
    command = ["arena", *players, "--prompts", "prompts.jsonl", "--out", "arena", "--limit", "10", "--judge"]
    gold, both = Path("gold.py").read_text(), lambda: json.loads(Path("arena/ratings.json").read_text())
    assert main([*command, "gold.py:worth"]) == 0 and len(log()) == 10
    first = both()["ratings"][0]["model"]
    Path("gold.py").write_text(gold.replace("return [float", "return [-float"))  # now the worse one wins
    assert main([*command[:-3], "--limit", "6", "--judge", "gold.py:worth"]) == 0 and len(log()) == 16
    assert "4 battles that gold.py:worth judged when it was another judge" in capsys.readouterr().out
    assert both()["battles"] == 6 and both()["ratings"][0]["model"] != first
    Path("gold.py").write_text(gold)
    assert main([*command, "gold.py:worth"]) == 0 and len(log()) == 22  # the four it had not said anything else of since are its own
    assert both()["battles"] == 10 and both()["ratings"][0]["model"] == first
    assert main([*command, "gold.py:worth"]) == 0 and len(log()) == 22
    # a model is another judge under another form
    assert main([*command, service, "--judge-name", "mute"]) == 0
    Fake.asked.clear()
    Path("form.txt").write_text("Which? {request} {a} {b}")
    assert main([*command, service, "--judge-name", "mute", "--judge-prompt", "form.txt"]) == 0 and len(Fake.asked) == 20
    Fake.asked.clear()
    assert main([*command, service, "--judge-name", "mute", "--judge-prompt", "form.txt"]) == 0 and not Fake.asked


def test_what_an_answer_looks_like():
    assert counts("Plain words, no more.") == (6, 0, 0, 0)
    assert counts("# One\n\n## Two\n1. **a** and **b**\n* c\n\n```\n# no heading\n- no item\n```\n")[1:] == (2, 2, 2)


@pytest.mark.parametrize(
    "reply, verdict",
    [("[[A]]", "A"), ("A is longer. [[a]] no, [[B]]", "B"), ("[[C]]", "C"), ("Answer B is better.", "B"), ("B", "B"), ("Answer A is as good as answer B", ""), ("no idea", ""), ("", "")],
)
def test_verdicts(reply: str, verdict: str):
    assert parse(reply) == verdict


def test_an_answer_cannot_write_the_judges_form():
    asked: list[Any] = []

    class Asker:
        def ask(self, conversations: Any, **_: Any) -> list[list[str]]:
            asked.extend(conversations)
            return [["[[A]]"] for _ in conversations]

    judge_pairs(Asker(), [Pair([{"role": "user", "content": "{a} {b}"}], "{b} {x}", "")])
    text = asked[0][0]["content"]
    assert "[Request]\n{a} {b}\n" in text and "[Answer A]\n{b} {x}\n" in text and "[Answer B]\n(nothing)\n" in text


@pytest.mark.parametrize(
    "arguments, told",
    [
        ([], "0 models were given; it takes two"),
        (["none.gguf", "other.gguf"], "no such model: none.gguf"),
        (["SERVICE,model=x", "SERVICE,model=x", "--judge", "length", "--prompts", "prompts.jsonl"], "two contestants are called x"),
        (["SERVICE,model=x,temperature=hot", "SERVICE,model=y"], "temperature is 'hot'"),
        (["SERVICE,model=x,top_p=2", "SERVICE,model=y"], "top_p above 0 to 1"),
        (["SERVICE,model=x", "SERVICE,model=y", "--judge", "length"], "without a page there must be prompts"),
        (["SERVICE,model=x", "SERVICE,model=y", "--judge", "length", "--prompts", "none.jsonl"], "none.jsonl does not exist"),
        (["SERVICE,model=x", "SERVICE,model=y", "--judge", "taste", "--prompts", "prompts.jsonl"], "there is no judge 'taste'"),
        (["SERVICE,model=x", "SERVICE,model=y", "--judge", "none.py:f", "--prompts", "prompts.jsonl"], "no such judge file"),
        (["SERVICE,model=x", "SERVICE,model=y", "--judge", "SERVICE", "--judge-prompt", "gold.py", "--prompts", "prompts.jsonl", "--dry-run"], "the judge's form lacks {request}"),
        (["SERVICE,model=x", "SERVICE,model=y", "--judge", "wants.py:needs", "--prompts", "prompts.jsonl", "--dry-run"], "the judge 'wants.py:needs' needs 'level', and 40 of 40 prompts have none"),
        (["SERVICE,model=x", "SERVICE,model=y", "--judge", "wants.py:compare", "--prompts", "prompts.jsonl", "--dry-run"], "needs 'level'"),
        (["SERVICE,model=x", "SERVICE,model=y", "--judge", "answer", "--prompts", "bare.jsonl", "--dry-run"], "the judge 'answer' needs 'answer', and 1 of 2 prompts have none"),
        (["SERVICE,model=x", "SERVICE,model=y", "--judge", "task", "--prompts", "prompts.jsonl"], "needs the task of each prompt"),
        (["SERVICE,model=x", "SERVICE,model=y", "--judge", "length", "--prompts", "prompts.jsonl", "--out", "mine"], "is not an arena's folder"),
        (["SERVICE,model=x", "SERVICE,model=y", "--judge", "length", "--prompts", "prompts.jsonl", "--limit", "0"], "limit is 0"),
        (["--battles", "none.jsonl"], "no such log of battles"),
        (["--battles", "prompts.jsonl"], "model_a and model_b are to be names"),
        (["--battles", "two.jsonl", "--anchor", "q"], "the anchor 'q' is in no battle"),
        (["--battles", "two.jsonl", "--only", "q"], "there is no model 'q'"),
        (["--battles", "two.jsonl", "--style-control"], "their style is not known"),
        (["--rank", "--out", "none"], "no such log of battles"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(room: Path, service: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    Path("mine").mkdir()
    Path("mine/file").write_text("x")
    Path("wants.py").write_text("def needs(completions, level, **row):\n    return [0.0] * len(completions)\ndef compare(answer_a, answer_b, level, spare=1):\n    return 'a'\n")
    Path("bare.jsonl").write_text('{"prompt": "q", "answer": "1"}\n{"prompt": "r"}\n')
    Path("two.jsonl").write_text('{"model_a": "x", "model_b": "y", "winner": "tie"}\n')
    before = sorted(str(p) for p in room.rglob("*"))
    assert main(["arena", *(a.replace("SERVICE", service) for a in arguments)]) == 2
    assert told in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert sorted(str(p) for p in room.rglob("*")) == before


def test_a_name_stands_for_one_contestant(room: Path, service: str):
    Room(Path("arena"), read_contestants([f"{service},model=oak", f"{service},model=elm"]), seed=3)
    with pytest.raises(UserError, match="elm was another contestant: its temperature"):
        Room(Path("arena"), read_contestants([f"{service},model=oak", f"{service},model=elm,temperature=0"]))
    with pytest.raises(UserError, match="begun with seed 3"):
        Room(Path("arena"), seed=4)
    again = Room(Path("arena"), read_contestants([f"{service},model=ash", f"{service},model=oak"]))
    prompts, _ = read_prompts("prompts.jsonl")
    assert again.seed == 3 and len(again.matches(prompts)) == 40 and again.matches(prompts) == again.matches(prompts[::-1][::-1])
