"""Runs in nanochat's environment, from its checkout, for quality.py: our tokenizer and documents in its formats, its model on our rows.

nanochat_worker.py prepare WORK           # $NANOCHAT_BASE_DIR/{tokenizer,base_data_climbmix} from WORK/{ranks.json,train.jsonl}
nanochat_worker.py score ROWS TAG STEP    # the last line has `nats`, summed over the rows' tokens
"""

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import torch


def prepare(work: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tiktoken
    from nanochat.tokenizer import SPECIAL_TOKENS

    base = Path(os.environ["NANOCHAT_BASE_DIR"])
    told = json.loads((work / "ranks.json").read_text())
    ranks = {bytes.fromhex(token): rank for rank, token in enumerate(told["ranks"])}
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
    encoding = tiktoken.Encoding("same", pat_str=told["pattern"], mergeable_ranks=ranks, special_tokens=special)
    (base / "tokenizer").mkdir(parents=True)
    (base / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    torch.save(torch.tensor([len(token) for token in ranks] + [0] * len(special), dtype=torch.int32), base / "tokenizer" / "token_bytes.pt")
    with open(work / "train.jsonl", encoding="utf-8") as rows:
        texts = [json.loads(row)["text"] for row in rows]
    data = base / "base_data_climbmix"
    data.mkdir(parents=True)
    for name, part in (("shard_00000", texts[:-2000]), ("shard_99999", texts[-2000:])):  # the last file is its validation set
        pq.write_table(pa.table({"text": part}), data / f"{name}.parquet", row_group_size=1000)


def score(rows: Path, tag: str, step: int) -> None:
    from nanochat.checkpoint_manager import build_model
    from nanochat.tokenizer import get_tokenizer

    folder = Path(os.environ["NANOCHAT_BASE_DIR"]) / "base_checkpoints" / tag
    model, _, _ = build_model(str(folder), step, torch.device("cpu"), "eval")
    ids = torch.tensor(np.load(rows)["rows"], dtype=torch.int64)
    bos = torch.full((len(ids), 1), get_tokenizer().get_bos_token_id())
    x = torch.cat([bos, ids[:, :-1].clamp(min=0)], 1)
    nats = 0.0
    with torch.no_grad():
        for a in range(0, len(ids), 16):
            losses = model(x[a : a + 16], ids[a : a + 16], loss_reduction="none").view(-1)  # its targets of -1 give 0
            nats += float(losses[ids[a : a + 16].reshape(-1) >= 0].double().sum())
    print(json.dumps({"nats": nats}))


if __name__ == "__main__":
    {"prepare": lambda: prepare(Path(sys.argv[2])), "score": lambda: score(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))}[sys.argv[1]]()
