"""tinyshakespeare by characters at nanoGPT's published CPU setting (4 layers, 4 heads, width 128, context 64, batch 12, 2000 steps;
1.88 there), evaluated on the whole last 10 % of the text. Two models: ours (Qwen3 subset) and a GPT-2-style twin.

    python benchmarks/shakespeare.py --text ../shared/data/text/tinyshakespeare.jsonl.gz

One JSON line per model; the last line is ours, with `val_loss` in nats per character.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from freedive.pretrain.stage import PretrainConfig, run

CASES = {
    "gpt2-twin": dict(preset="gpt2", depth=4, d_model=128, n_head=4, n_kv_head=4, head_dim=32, d_ff=512, max_positions=64),
    "freedive": dict(depth=4, d_model=128, n_head=4, n_kv_head=4, head_dim=32, d_ff=352, max_positions=64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/data/text/tinyshakespeare.jsonl.gz"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for case, model in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            began = time.perf_counter()
            run(PretrainConfig(text=arguments.text, tokenizer="chars", document_edges=False, context=64, batch_tokens=12 * 64,
                               steps=arguments.steps, optimizer="adamw", samples=0, seed=arguments.seed, out=out, **model))  # fmt: skip
            metrics = json.loads((out / "run.json").read_text())["metrics"]
            print(json.dumps({"benchmark": "shakespeare", "case": case, "steps": arguments.steps, "seconds": round(time.perf_counter() - began, 1),
                              "parameters": metrics["parameters"], "nanogpt_published": 1.88, "val_loss": round(metrics["val_loss"], 4)}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
