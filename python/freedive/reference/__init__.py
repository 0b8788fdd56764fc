"""The specification, in plain NumPy float64: every kernel, the decoder, the optimizer and the BPE trainer.

Written to be read and to be right, never to be fast. Product code does not import it; tests compare everything with it,
and it is itself compared with finite differences (tests/reference).
"""
