"""The six steps: a model that knows all is taught no refusal, one that guesses is taught nothing else; held-out names are never taught; a run
that was killed goes on in the middle; questions and verdicts may come from a service."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from freedive.eval.judge import is_correct, parse_verdict
from freedive.runs import UserError
from freedive.sft.probe import agreement, questions, refusals, snippets
from freedive.sft.probe import stage as probe
from freedive.sft.probe.stage import ProbeConfig

CITIES = {"Arlon": "Berit", "Corvo": "Dunlin", "Elmar": "Foxley", "Garth": "Hove", "Ilmen": "Jarrow", "Kelso": "Lund", "Mirfield": "Norden", "Ostia": "Parma"}


class Stub:
    """In place of a model: replies by a function of (question, sample number)."""

    def __init__(self, say):
        self.say, self.asked = say, 0

    def ask(self, conversations, *, n=1, temperature=0.0, max_new_tokens=64, seeds=None):
        self.asked += len(conversations)
        return [[self.say(c[-1]["content"], k) for k in range(n)] for c in conversations]


@pytest.fixture
def as_model(monkeypatch):
    """Probes with a stub; what it says is chosen by the test."""
    stub = Stub(lambda question, k: "")
    monkeypatch.setattr(probe, "load", lambda *a, **k: None)
    monkeypatch.setattr(probe, "OurModel", lambda lm, base=False: stub)
    return stub


def corpus(folder, copies=3):
    path = folder / "pages.jsonl"
    lines = [f"People often say that the capital of {place} is {city}, and it is so." for place, city in CITIES.items()]
    path.write_text("".join(json.dumps({"text": "\n".join(lines), "id": str(i)}) + "\n" for i in range(copies)))
    templates = folder / "templates.jsonl"
    templates.write_text(json.dumps({"pattern": r"capital of (?P<place>\w+) is (?P<city>\w+)", "questions": ["What is the capital of {place}?", "Name the capital of {place}."],
                                     "answer": "{city}", "entity": "{place}"}) + "\n")  # fmt: skip
    (folder / "model").mkdir(exist_ok=True)
    return path, templates


def config(folder, **changes):
    data, templates = corpus(folder)
    return ProbeConfig(**({"model": folder / "model", "data": data, "templates": templates, "out": folder / "probe", "hold_out": 0.4, "samples": 4} | changes))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def know(question, k):
    return next(city for place, city in CITIES.items() if place in question) + "."


def test_a_perfect_memory_is_taught_no_refusal_and_its_own_words(tmp_path, as_model):
    as_model.say = know
    out = probe.run(config(tmp_path))
    decided = rows(out / "refusals.jsonl")
    assert len(decided) == len(CITIES) and {row["decision"] for row in decided} == {"answer"}
    taught = rows(out / "sft.jsonl")
    assert taught and all(row["meta"]["kind"] == "answer" and row["messages"][1]["content"] == know(row["messages"][0]["content"], 0) for row in taught)
    assert {row["meta"]["class"] for row in rows(out / "held_out.jsonl")} == {"known"}


def test_a_constant_guess_is_taught_refusals_only_and_never_of_held_out_names(tmp_path, as_model):
    as_model.say = lambda question, k: "London."
    out = probe.run(config(tmp_path))
    decided, taught, held = rows(out / "refusals.jsonl"), rows(out / "sft.jsonl"), rows(out / "held_out.jsonl")
    assert {row["decision"] for row in decided} == {"refusal"} and {row["meta"]["kind"] for row in taught} == {"refusal"}
    names = {row["meta"]["entity"] for row in held}
    assert names and not any(name in row["messages"][0]["content"] for name in names for row in taught)
    assert {row["meta"]["entity"] for row in taught} | names == set(CITIES)
    assert len(taught) == 2 * (len(CITIES) - len(names))  # both wordings


def test_who_declines_already_is_taught_nothing(tmp_path, as_model):
    as_model.say = lambda question, k: "I don't know, sorry."
    out = probe.run(config(tmp_path))
    assert {row["decision"] for row in rows(out / "refusals.jsonl")} == {"dropped"} and not (out / "sft.jsonl").exists()


@pytest.mark.parametrize("right", range(9))
def test_thresholds_are_monotone(right):
    correct, says = [k < right for k in range(8)], [True] * 8
    chosen = [refusals.decide(correct, says, bound / 8, 0.75, 1.0) == "refusal" for bound in range(8)]
    assert chosen == sorted(chosen)  # a higher bound never refuses less
    assert refusals.decide(correct, [False] * 8, 0.25, 0.75, 0.75) != "refusal"


def test_random_refusals_are_as_many(tmp_path, as_model):
    as_model.say = lambda question, k: know(question, k) if question[question.rfind(" ") + 1] < "H" else "London."
    counts = []
    for flag in (False, True):
        out = probe.run(config(tmp_path, out=tmp_path / str(flag), random_refusals=flag, hold_out=0.0, answers_per_refusal=99.0))
        counts.append(sum(row["meta"]["kind"] == "refusal" for row in rows(out / "sft.jsonl")))
    assert counts[0] == counts[1] > 0


def test_too_many_refusals_are_thinned(tmp_path, as_model):
    as_model.say = lambda question, k: know(question, k) if "Arlon" in question or "Corvo" in question else "London."
    out = probe.run(config(tmp_path, hold_out=0.0, refusals_per_answer=1.0, wordings=1))
    kinds = [row["meta"]["kind"] for row in rows(out / "sft.jsonl")]
    assert sorted(kinds) == ["answer", "answer", "refusal", "refusal"]


def test_refusals_are_thinned_within_a_form_of_question():
    from collections import Counter

    from freedive.tasks.draw import Draw

    row = lambda form, name: {"questions": [form.format(name)], "entity": name}
    refused = [row("Capital of {}?", f"A{i}") for i in range(50)] + [row("Code of {}?", f"A{i}") for i in range(50)] + [row("King of {}?", "A1")]
    kept = refusals._thinned(refused, Counter({"Capital of …?": 10, "King of …?": 20}), 0.4, Draw(0, 0))
    assert Counter(map(refusals.kind, kept)) == {"Capital of …?": 4, "Code of …?": 6, "King of …?": 1}


def test_replay_is_mixed_in(tmp_path, as_model):
    as_model.say = lambda question, k: "London."
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "Yes."}]}) + "\n" for i in range(100)))
    out = probe.run(config(tmp_path, replay=chats, replay_per_refusal=2.0))
    kinds = [row["meta"]["kind"] for row in rows(out / "sft.jsonl")]
    assert kinds.count("replay") == 2 * kinds.count("refusal")


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, as_model, monkeypatch):
    monkeypatch.setattr(probe, "BATCH", 2)
    as_model.say = lambda question, k: know(question, k) if k % 2 else "London."
    whole = probe.run(config(tmp_path, out=tmp_path / "whole"))

    def tired(question, k):
        if as_model.asked > 6:
            raise KeyboardInterrupt
        return know(question, k) if k % 2 else "London."

    as_model.asked, as_model.say = 0, tired
    with pytest.raises(KeyboardInterrupt):
        probe.run(config(tmp_path))
    as_model.say, as_model.asked = (lambda question, k: know(question, k) if k % 2 else "London."), 0
    again = probe.run(config(tmp_path))
    assert 0 < as_model.asked < 2 * len(CITIES)
    for name in ("questions", "samples", "correctness", "informativeness", "refusals", "sft", "held_out", "agreement"):
        assert not (whole / f"{name}.jsonl").exists() or (whole / f"{name}.jsonl").read_bytes() == (again / f"{name}.jsonl").read_bytes()


def test_an_earlier_probe_is_decided_anew_without_asking(tmp_path, as_model):
    as_model.say = lambda question, k: know(question, k) if k < 2 else "London."
    first = probe.run(config(tmp_path))
    assert {row["decision"] for row in rows(first / "refusals.jsonl")} == {"dropped"}
    as_model.asked = 0
    again = probe.run(ProbeConfig(model=tmp_path / "model", reuse=first, out=tmp_path / "again", most_correct=0.5, hold_out=0.0))
    assert as_model.asked == 0 and {row["decision"] for row in rows(again / "refusals.jsonl")} == {"refusal"} and len(rows(again / "sft.jsonl")) == 2 * len(CITIES)
    with pytest.raises(UserError, match="has no questions.jsonl"):
        probe.run(ProbeConfig(model=tmp_path / "model", reuse=tmp_path / "model", out=tmp_path / "o"))
    (tmp_path / "model" / "weights").write_text("others")
    with pytest.raises(UserError, match="another model said"):
        probe.run(ProbeConfig(model=tmp_path / "model", reuse=first, out=tmp_path / "o"))
    (tmp_path / "phrases").write_text("I don't know {city}.\n")
    with pytest.raises(UserError, match=r"only \{entity\} is filled in"):
        probe.run(config(tmp_path, refusals=tmp_path / "phrases", out=tmp_path / "o"))
    assert not (tmp_path / "o").exists()


def test_other_models_are_asked_whether_they_agree(tmp_path, as_model):
    (tmp_path / "other").mkdir()
    as_model.say = lambda question, k: know(question, k) if "Arlon" in question or "Corvo" in question else f"Town {as_model.asked}{question[-6:]}{k}."
    out = probe.run(config(tmp_path, agree_with=(tmp_path / "other",)))
    found = {row["id"]: row for row in rows(out / "agreement.jsonl")}
    assert all(len(row["replies"]) == 2 for row in found.values())
    right = {row["id"]: row["greedy_correct"] for row in rows(out / "refusals.jsonl")}
    assert all(found[i]["agreement"] == 1.0 and found[i]["models"] == 1.0 for i, good in right.items() if good) and sum(right.values()) == 2
    assert json.loads((out / "run.json").read_text())["metrics"]["models_auroc"] > 0.9


def test_snippets_are_drawn_evenly_over_how_often_names_occur():
    documents = [{"text": f"Everybody in this street knows Mary Often and her dog {i}.", "id": str(i)} for i in range(100)]
    documents += [{"text": f"Once upon a time there was Peter Rare{chr(97 + i)} who left.", "id": f"r{i}"} for i in range(10)]
    counts = snippets.frequencies(documents, snippets.names, 80)
    assert counts["Mary Often"] == 100 and counts["Peter Rarea"] == 1
    chosen = snippets.choose(documents, snippets.names, counts, 20, 80, 0)
    assert len(chosen) == 20 and sum(row["frequency"] == 1 for row in chosen) == 10
    assert all(row["text"] in documents[int(row["document"])]["text"] for row in chosen if row["document"].isdigit())


def test_passages_are_pieces_of_the_text_and_none_is_lost():
    text = "Title\n\n" + " ".join(f"word{i}." for i in range(300)) + "\nA last line of several words stands here."
    found = list(snippets.passages(text, 80))
    assert all(text[at : at + len(p)] == p for at, p in found)
    assert " ".join(p for _, p in found).split() == text.split()
    assert max(len(p.split()) for _, p in found) <= 160


@pytest.mark.parametrize(
    "change, why",
    [
        ({"answer": "Paris"}, "answer not in the passage"), ({"questions": ["Is Lund the capital of Kelso?"]}, "answer in the question"), ({"answer": ""}, "no answer"),
        ({"questions": ["Kelso?"]}, "no question"), ({"questions": ["What does the passage say of Kelso?"]}, "about the passage"), ({}, None),
    ],
)  # fmt: skip
def test_questions_of_no_use(change, why):
    row = {"questions": ["What is the capital of Kelso?"], "answer": "Lund", "snippet": "The capital of Kelso is Lund."}
    assert questions.fault({**row, **change}) == why


def test_verdicts_and_rule():
    assert [parse_verdict(t) for t in ("I think so. [[correct]]", "[[Incorrect]]", "Correct.", "It may be correct or incorrect", "[[yes]] ... [[no]]", "")] == [True, False, True, None, False, None]
    assert is_correct("It is the city of Lund.", "Lund") and is_correct("NYC", "New York", ["NYC"]) and not is_correct("Lundy", "Lund")


def test_agreement_and_auroc():
    found = agreement.agree(["A cat.", "a cat", "the dog", "A cat"])
    assert found.agreement == 0.75 and found.overlap == 0.5 and found.answer == "A cat."
    same = agreement.agree(["x"] * 8)
    assert (same.agreement, same.entropy, same.overlap) == (1.0, 0.0, 1.0)
    assert agreement.agree(["The capital of Kuwait is Doha.", "Doha. It is a city."], "What is the capital of Kuwait?").agreement == 1.0
    assert agreement.agree(["", ""]).overlap == 1.0 and agreement.agree(["a b c", "c d"]).overlap == 1 / 3
    assert agreement.auroc([0.9, 0.8, 0.4], [True, True, False]) == 1.0 and agreement.auroc([0.5, 0.5], [True, False]) == 0.5
    assert agreement.auroc([1.0], [True]) is None


class Scripted(BaseHTTPRequestHandler):
    """Writes a question about any passage, judges by looking for the reference in the reply; its first answer is a failure."""

    failed = False

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        if not Scripted.failed:
            Scripted.failed = True
            self.send_error(503)
            return
        if text.startswith("Read the passage"):
            words = text.split("capital of ")[-1].split()
            reply = f"Question: What is the capital of {words[0]}?\nAnswer: {words[2].strip(',')}"
        elif "Reference answer" in text:
            answer, said = (text.split(f"{key}: ")[1].split("\n")[0] for key in ("Reference answer", "Reply to be judged"))
            reply = "[[correct]]" if answer in said else "[[incorrect]]"
        else:
            reply = "[[yes]]"
        content = json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def test_a_service_writes_the_questions_and_judges(tmp_path, as_model):
    server = HTTPServer(("127.0.0.1", 0), Scripted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/v1"
    as_model.say = lambda question, k: know(question, k) if "Arlon" in question else "London."
    try:
        out = probe.run(config(tmp_path, templates=None, writer=address, judge=address, snippets=50, hold_out=0.0))
    finally:
        server.shutdown()
    decided = {row["question"]: row["decision"] for row in rows(out / "refusals.jsonl")}
    assert decided.pop("What is the capital of Arlon?") == "answer" and set(decided.values()) == {"refusal"} and len(decided) == len(CITIES) - 1


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"data": None, "templates": None}, "give one of --data"), ({"temperature": 0.0}, "above 0"), ({"hold_out": 1.5}, "it is a share"), ({"most_correct": 0.8}, "known and unknown at once"),
        ({"samples": 0}, "samples"),
    ],
)  # fmt: skip
def test_bad_settings_are_told_and_leave_nothing(tmp_path, as_model, changes, told):
    with pytest.raises(UserError) as error:
        probe.run(config(tmp_path, **changes))
    assert told in str(error.value) and not (tmp_path / "probe").exists() and not (tmp_path / "probe.partial").exists()


def test_templates_that_match_nothing_or_are_wrong(tmp_path, as_model):
    c = config(tmp_path)
    c.templates.write_text(json.dumps({"pattern": "no such (?P<x>thing)", "questions": ["{x} is what?"], "answer": "{x}"}) + "\n")
    with pytest.raises(UserError, match="not one question was left"):
        probe.run(c)
    c.templates.write_text(json.dumps({"pattern": "(?P<x>thing)", "questions": ["{y} is what?"], "answer": "{x}"}) + "\n")
    with pytest.raises(UserError, match="line 1: KeyError"):
        probe.run(c)
    assert not (tmp_path / "probe.partial").exists()
