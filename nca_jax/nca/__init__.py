"""Neural cellular automata as a source of training sequences (arXiv 2603.10055)."""
