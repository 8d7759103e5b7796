"""A finished run, read back whole: what tests compare with."""

from nca_jax import experiment, folders, run, trees
from nca_jax.checkpoint.store import read_manifest, restore_params


def load_program(folder, mesh, weights='params'):
    """(config, program, parameters or their 'ema', manifest of the newest valid checkpoint)."""
    values = folders.read_record(folder)['config']
    # Every platform has it, as `run.load_model` knows.
    values['model']['attention'] = 'einsum'
    config = experiment.resolve(values)
    program, checkpoints = run.build(config, mesh, folder), folders.checkpoints(folder)
    leaves = trees.flatten({'params': program.abstract.params, 'ema': program.abstract.ema}[weights])
    shardings = {path: leaf.sharding for path, leaf in leaves.items()}
    params, manifest = restore_params(checkpoints, read_manifest(checkpoints)['step'], shardings, weights)
    return config, program, params, manifest
