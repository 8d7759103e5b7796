"""`python -m nca_jax COMMAND`."""

from nca_jax import cli

cli.start()
