"""The coefficients of Muon's iteration (csrc/model/muon.cpp): python dev/newton_schulz.py [--least 0.003] [--steps 4] [--cushion 1.01]

Every step applies an odd polynomial p(x) = a x + b x^3 + c x^5 to the singular values, which begin in (0, 1]. Taken one after the other, the
best step is the polynomial nearest to 1 on the interval that the steps before have left (Amsel et al. 2025, arXiv:2505.16932, theorem 3.1).
That is found by Remez's exchange: at four points of the interval the error alternates between +e and -e.
"""

from __future__ import annotations

import argparse

import numpy as np


def nearest_to_one(least: float, most: float) -> tuple[np.ndarray, float]:
    """a, b, c of the odd polynomial of degree 5 nearest to 1 on [least, most], and its largest error."""
    powers = np.array([1, 3, 5])
    grid = np.unique(np.concatenate([np.geomspace(least, most, 20001), np.linspace(least, most, 20001)]))
    points = np.geomspace(least, most, 4)
    for _ in range(100):
        solved = np.linalg.solve(np.column_stack([points[:, None] ** powers, [1, -1, 1, -1]]), np.ones(4))
        error = 1 - grid[:, None] ** powers @ solved[:3]
        turns = [0, *(np.flatnonzero(np.diff(np.sign(np.diff(error)))) + 1), len(grid) - 1]  # both ends and what lies between
        found = grid[turns]
        if len(found) != 4 or np.allclose(found, points, rtol=1e-9):
            break
        points = found
    return solved[:3], float(np.abs(error).max())


def chain(least: float, steps: int, cushion: float) -> list[np.ndarray]:
    """The coefficients of `steps` steps; of all but the last those of p(x / cushion), since beyond its interval a polynomial is steep, and rounding
    takes singular values there."""
    low, high, found = least, 1.0, []
    for _ in range(steps):
        step, error = nearest_to_one(low, high)
        found.append(step)
        low, high = 1 - error, 1 + error
    return [step / cushion ** np.array([1, 3, 5]) for step in found[:-1]] + found[-1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--least", type=float, default=0.003, help="smallest singular value that shall come near 1, of a matrix whose norm is 1")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cushion", type=float, default=1.01)
    chosen = parser.parse_args()
    values = np.geomspace(chosen.least, 1, 100_001)
    for a, b, c in chain(chosen.least, chosen.steps, chosen.cushion):
        print(f"{a:.4f} {b:.4f} {c:.4f}")
        values = a * values + b * values**3 + c * values**5
    print(f"singular values from {chosen.least:g} to 1 are {values.min():.3f} to {values.max():.3f} then")


if __name__ == "__main__":
    main()
