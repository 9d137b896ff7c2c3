"""The tables and figures of the paper; what `reproduce.py` is made of."""
