"""The control reward: a coin that is fair, thrown anew for each completion, and the same in every run."""

from freedive.rl.rewards import coin


def test_the_coin_knows_nothing_but_the_seed():
    n = 4000
    first = coin(["p"] * n, ["c"] * n, seeds=list(range(n)))
    assert set(first) == {0.0, 1.0} and abs(sum(first) / n - 0.5) < 0.04
    assert first == coin(["q"] * n, ["d"] * n, seeds=list(range(n)))
    assert first != coin(["p"] * n, ["c"] * n, seeds=list(range(n, 2 * n)))
