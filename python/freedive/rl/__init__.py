"""Reinforcement learning on problems whose answers can be checked (talk 4.1-4.3)."""
