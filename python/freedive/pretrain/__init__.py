"""Pretraining: from text to a base model, an internet-document simulator (talk 1.3)."""
