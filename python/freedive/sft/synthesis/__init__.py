"""Conversations made by a model (talk 2: nowadays models write most of the data that people only look over): `freedive synthesize`."""
