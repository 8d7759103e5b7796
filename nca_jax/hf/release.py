"""Checkpoints of PyTorch that the release of the paper's code wrote."""

import pathlib
import re
from collections.abc import Mapping

from nca_jax.errors import UserError, check
from nca_jax.hf import llama, torch_zip
from nca_jax.model.config import ModelConfig

DTYPES = ('float32', 'float16', 'bfloat16')
# Beginnings of names: Hugging Face's, and the release's.
RENAMED = {'model.embed_tokens': 'input_proj', 'lm_head': 'output_proj', 'model.': ''}
# DistributedDataParallel and torch.compile put these before every name.
WRAPPERS = r'^(module\.|_orig_mod\.)+'


def read(file: pathlib.Path, heads: int) -> llama.WeightSource:
    """A file that the release's code wrote. UserError for any other."""
    content = torch_zip.load(file)
    if not isinstance(content, dict) or not isinstance(content.get('model'), dict):
        raise UserError(f"{file}: must hold a dict with 'model', the parameters by name")
    tensors = {re.sub(WRAPPERS, '', str(name)): tensor for name, tensor in content['model'].items()}
    # Integers would be those of a quantized model, which aren't its weights.
    for name, tensor in tensors.items():
        kind = str(tensor.dtype) if isinstance(tensor, torch_zip.Tensor) else type(tensor).__name__
        check(kind in DTYPES, f'{file}: {name!r}', kind, f'must be a tensor of {", ".join(DTYPES)}')
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    model, rows = model_config(shapes, heads, file)
    expected = {rename(name): shape for name, shape in llama.tensor_shapes(model, rows).items()}
    llama.check_tensors(expected, shapes, file)
    # The release's tables have more rows than its vocabulary has tokens, and no file says how many.
    tokens = None
    return llama.WeightSource(
        'checkpoint of PyTorch', model, rows, tokens, lambda name: tensors[rename(name)].read(), tokenizer=None
    )


def rename(name: str) -> str:
    """The release's name of a tensor of Hugging Face's."""
    for theirs, short in RENAMED.items():
        if name.startswith(theirs):
            return short + name.removeprefix(theirs)
    return name


def model_config(shapes: Mapping[str, tuple[int, ...]], heads: int, place: object) -> tuple[ModelConfig, int]:
    """The model that the release's names and these shapes make, and the rows of its tables.

    Shapes don't show heads; length, rotary base and the norms' epsilon are those of the release.
    """
    for name in ('input_proj.weight', 'layers.0.mlp.gate_proj.weight'):
        if len(shapes.get(name, ())) != 2:
            raise UserError(f'{place}: {name} must be a matrix, and {"is none" if name in shapes else "is missing"}')
    rows, width = shapes['input_proj.weight']
    shared = {
        'layers': len({match[1] for name in shapes if (match := re.match(r'layers\.(\d+)\.', name))}),
        'width': width,
        'heads': heads,
        'ffn': shapes['layers.0.mlp.gate_proj.weight'][0],
        'length': 1024,
        'rope_theta': 1e4,
        'norm_eps': 1e-6,
        'tied': False,
        # Only first stages have it.
        'head_bias': rename('lm_head.bias') in shapes,
    }
    return llama.model_config(shared), rows
