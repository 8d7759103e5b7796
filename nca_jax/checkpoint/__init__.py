"""Checkpoints: writing and validating them (store, manifest), and handing weights between stages (graft)."""
