"""What a run has made, read back: its model with all that its config determines, or the model alone."""

import pathlib
from typing import Any

import jax

from nca_jax import experiment, run, trees
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.checkpoint.store import read_manifest, restore_params, saved_params
from nca_jax.errors import UserError
from nca_jax.folders import checkpoints, read_record
from nca_jax.hf import llama
from nca_jax.model import transformer
from nca_jax.model.config import ModelConfig
from nca_jax.train.program import Program


def load(
    folder: pathlib.Path, mesh: jax.sharding.Mesh, weights: str = 'params'
) -> tuple[Program, dict, dict[str, Any]]:
    """A finished run as (program, parameters or their 'ema', manifest of its newest valid checkpoint)."""
    values = read_record(folder)['config']
    values['model']['attention'] = 'einsum'  # which every platform has
    program = run.build(experiment.from_dict(values), mesh, folder)
    manifest = read_manifest(checkpoints(folder))
    abstract = trees.flatten({'params': program.abstract.params, 'ema': program.abstract.ema}[weights])
    if not abstract:
        raise UserError(f'{folder}: kept no average of its weights (its optimizer.ema is None)')
    shardings = {path: leaf.sharding for path, leaf in abstract.items()}
    params, manifest = restore_params(checkpoints(folder), manifest['step'], shardings, weights)
    return program, params, manifest


def load_model(
    folder: pathlib.Path, mesh: jax.sharding.Mesh, weights: str = 'params'
) -> tuple[ModelConfig, Vocab, dict, dict[str, Any]]:
    """A run's model without its data: (config, vocabulary, parameters or their 'ema', manifest of the checkpoint).

    Also an adopted folder's, of which no more is known. The config is for reading: no dropout, and what runs anywhere.
    """
    manifest = read_manifest(checkpoints(folder))
    model, saved = manifest['config']['model'], saved_params(manifest, weights)
    if not saved:
        raise UserError(f'{folder}: kept no average of its weights (its optimizer.ema is None)')
    param_dtype = str(next(iter(saved.values())).dtype)
    # Adopted weights name no dtype of activations.
    config = llama.model_config(model, ({'dtype': param_dtype} | model)['dtype'], param_dtype)
    vocab = Vocab(manifest['vocab_size'])
    axes, abstract = transformer.logical_axes(config, vocab), transformer.abstract_params(config, vocab)
    shardings = meshes.param_shardings(mesh, axes, abstract)
    params, manifest = restore_params(checkpoints(folder), manifest['step'], shardings, weights)
    return config, vocab, params, manifest
