"""Writes a Hugging Face folder of a LlamaForCausalLM: config.json, weights as safetensors, and a tokenizer."""

import itertools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from nca_jax import trees
from nca_jax.batch import Vocab
from nca_jax.data import tokenizer as bpe
from nca_jax.hf import llama
from nca_jax.model.config import ModelConfig

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
# Of one file, and of what is held in memory beside the parameters themselves.
SHARD_BYTES = 2 << 30


def write_config(
    folder: pathlib.Path, model: ModelConfig, vocab: Vocab, tokenizer: Tokenizer | None, dtype: str
) -> None:
    """Writes everything but the weights. Raises UserError for a head with a bias."""
    end = None if tokenizer is None else bpe.end_of_text(tokenizer)
    _write_json(folder / 'config.json', llama.to_config(model, vocab, end, dtype))
    if tokenizer is not None:
        tokenizer.save(str(folder / bpe.FILE))
        special = dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), bpe.END_OF_TEXT)
        content = {
            'tokenizer_class': 'PreTrainedTokenizerFast',
            'model_max_length': model.length,
            'model_input_names': ['input_ids', 'attention_mask'],
            'clean_up_tokenization_spaces': False,
        }
        _write_json(folder / 'tokenizer_config.json', content | special)


def write_weights(folder: pathlib.Path, model: ModelConfig, params: trees.Tree, vocab: Vocab, dtype: np.dtype) -> int:
    """Writes the parameters and returns the number of files: one, or several of about SHARD_BYTES with an index."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in llama.tensor_shapes(model, vocab.size).items()}
    shards, room = [[]], SHARD_BYTES
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    names = [f'model-{number:05}-of-{len(shards):05}.safetensors' for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [WEIGHTS]
    else:
        index = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        _write_json(folder / INDEX, {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': index})
    tensors = llama.exported(params, vocab, dtype)
    for name, shard in zip(names, shards, strict=True):
        save_file(dict(itertools.islice(tensors, len(shard))), folder / name, metadata={'format': 'pt'})
        # safetensors closes its files to other users.
        (folder / name).chmod(folder.stat().st_mode & 0o666)
    return len(shards)


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + '\n')
