"""Measuring a model: answers against a checker, stopping, bits per byte of held-out text."""
