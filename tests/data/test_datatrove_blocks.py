"""Our steps as datatrove blocks: with datatrove in an environment of its own (FREEDIVE_DATATROVE_PYTHON), and the sentence without it."""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig

import pytest
from data_pages import documents, page, story

from freedive.data import DataConfig, run
from freedive.data.datatrove_blocks import Extract, quality
from freedive.runs import UserError
from freedive.tasks.warc import write_warc

PEER = os.environ.get("FREEDIVE_DATATROVE_PYTHON")
PIPELINE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import WarcReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from freedive.data.datatrove_blocks import Extract, Scrub, language, quality
steps = [WarcReader(sys.argv[1], glob_pattern="*.warc.gz"), Extract(timeout=10), language("en"), *quality("basic"), Scrub(), JsonlWriter(sys.argv[2], compression=None)]
LocalPipelineExecutor(pipeline=steps, tasks=1, workers=1, logging_dir=sys.argv[2] + "-logs").run()
"""


@pytest.mark.skipif(importlib.util.find_spec("datatrove") is not None, reason="datatrove is installed here")
def test_without_datatrove_there_is_a_sentence():
    for make in (Extract, lambda: quality("fineweb")):
        with pytest.raises(UserError, match="datatrove"):
            make()


@pytest.mark.skipif(not PEER, reason="FREEDIVE_DATATROVE_PYTHON names no Python with datatrove")
def test_a_datatrove_pipeline_of_our_blocks_keeps_what_we_keep(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    german = "Der Fluss fließt durch die Stadt, und am Morgen gehen die Leute über die Brücke zur Arbeit. " * 9
    pages = [(f"https://a.example/{i}", page(story(i) + f" Write to me{i}@a.example.")) for i in range(20)]
    pages += [
        ("https://a.example/short", page("Too short.")),
        ("https://a.example/de", page(german)),
        ("https://a.example/rep", page("Buy it now. " * 90)),
    ]
    write_warc(source / "x.warc.gz", pages)
    # its own packages first; ours (compiled for the same Python) behind them
    paths = os.pathsep.join([p for p in sys.path if p.endswith("python")] + [sysconfig.get_paths()["purelib"]])
    code = f"import sys; sys.path += {paths.split(os.pathsep)!r}\n" + PIPELINE
    done = subprocess.run([PEER, "-c", code, str(source), str(tmp_path / "peer")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = [json.loads(line)["text"] for file in (tmp_path / "peer").glob("*.jsonl") for line in file.read_text().splitlines()]
    ours = documents(run(DataConfig((source,), tmp_path / "out")))
    assert sorted(theirs) == sorted(d["text"] for d in ours) and len(ours) == 20
