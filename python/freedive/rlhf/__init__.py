"""Learning from human feedback (talk 4.4): preferences, reward models, DPO, judges, best of n, and the monitor of over-optimisation."""
