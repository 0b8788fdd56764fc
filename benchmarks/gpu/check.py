"""That what is timed is right at these sizes, too: a sample of what an op wrote beside the CPU's kernels or NumPy in float64.

Tests compare whole results, of small shapes; an index that does not fit into 32 bits, say, is wrong only here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from our_arguments import quantized_rows

from freedive import ops
from freedive.model.quants import dequantize

Arguments = dict[str, Any]
ROWS = 16


def error_of(op: str, inputs: Arguments, outputs: Arguments, before: Arguments) -> float:
    """The largest ||got - expected|| / ||expected|| of a sample of each output; before: what the outputs held at first. NaN where one is NaN"""
    if op == "attention_cached":
        pairs = rows_of_cache(inputs, outputs)
    elif op.startswith("attention"):
        pairs = last_sequence(op, inputs, outputs)
    elif op == "quantized_matmul":
        o, (O, C) = sample(outputs["out"].shape[1]), (outputs["out"].shape[1], inputs["x"].shape[1])
        weight = dequantize("Q8_0", quantized_rows(O, C)[o].reshape(-1)).reshape(-1, C)
        pairs = [(outputs["out"][:, o], inputs["x"].astype(np.float64) @ weight.T)]
    elif op == "matmul_backward_weight":
        o = sample(len(outputs["dweight"]))
        expected = before["dweight"][o].astype(np.float64) + inputs["dout"][:, o].T.astype(np.float64) @ inputs["x"].astype(np.float64)
        pairs = [(outputs["dweight"][o], expected)]
    elif op == "embedding_backward":
        ids = inputs["tokens"][sample(len(inputs["tokens"]))]
        sums = [before["dwte"][i].astype(np.float64) + inputs["dout"][inputs["tokens"] == i].sum(0, dtype=np.float64) for i in ids]
        pairs = [(outputs["dwte"][ids], np.array(sums))]
    elif op == "global_norm":
        pairs = [(outputs["out"], np.sqrt(np.square(inputs["x"], dtype=np.float64).sum(keepdims=True)))]
    else:
        pairs = rows(op, inputs, outputs, before)
    errors = [float(np.linalg.norm(got - expected) / np.linalg.norm(expected)) for got, expected in pairs]
    return float("nan") if any(np.isnan(errors)) else max(errors)


def sample(n: int) -> np.ndarray:
    """Some of 0 .. n-1, the first and the last among them"""
    return np.unique(np.linspace(0, n - 1, ROWS).astype(np.int64))


def rows(op: str, inputs: Arguments, outputs: Arguments, before: Arguments) -> list[tuple[np.ndarray, np.ndarray]]:
    """The op again for a few rows (of flat tensors: elements), which depend on no others. Sums over all rows are left out"""
    schema = ops.schemas()[op]
    letter = next(a.dims[0] for a in schema if a.written)
    chosen = sample(len(next(outputs[a.name] for a in schema if a.written)))
    some: Arguments = {}
    for a in schema:
        value = inputs.get(a.name, before.get(a.name))
        if a.name == "packed":  # the device's own layout
            continue
        some[a.name] = value[chosen].copy() if value is not None and a.dims[:1] == (letter,) else value.copy() if a.written else value
    if "compute" in some:
        some["compute"] = "float32"
    ops.call(op, **{name: value for name, value in some.items() if value is not None})
    return [(outputs[a.name][chosen], some[a.name].astype(np.float64)) for a in schema if a.written and a.dims[:1] == (letter,)]


def rows_of_cache(inputs: Arguments, outputs: Arguments) -> list[tuple[np.ndarray, np.ndarray]]:
    chosen = sample(len(inputs["past_lens"]))
    cut = {name: inputs[name][chosen].copy() for name in ("q", "past_lens", "block_table")}
    expected = np.empty_like(outputs["out"][chosen])
    whole = {name: inputs[name] for name in ("k_cache", "v_cache", "scale")}
    ops.call("attention_cached", out=expected, **cut, **whole, cu_seqlens=np.arange(len(chosen) + 1, dtype=np.int32), threads=4)
    return [(outputs["out"][chosen], expected.astype(np.float64))]


def last_sequence(op: str, inputs: Arguments, outputs: Arguments) -> list[tuple[np.ndarray, np.ndarray]]:
    begin, end = inputs["cu_seqlens"][-2:]
    part = slice(max(begin, 0), end)
    cut = {name: inputs[name][part].copy() for name in ("q", "k", "v", "dout", "out", "lse") if name in inputs}
    expected = {name: np.empty_like(value[part]) for name, value in outputs.items()}
    ops.call(op, **cut, **expected, cu_seqlens=np.array([0, end - begin], np.int32), scale=inputs["scale"], threads=4)
    return [(outputs[name][part], value.astype(np.float64)) for name, value in expected.items()]
