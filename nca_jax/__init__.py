"""Pre-pre-training language models on neural cellular automata, in JAX (arXiv 2603.10055)."""

__version__ = '0.2.0'
