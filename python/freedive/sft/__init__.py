"""Supervised fine-tuning: from base model to assistant, by imitating conversations (talk 2)."""
