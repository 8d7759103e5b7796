"""Weights from elsewhere, to be adopted: where they come from, which tokens they know, and their record as a run."""

import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from nca_jax import files, trees
from nca_jax.batch import MAX_VOCAB, Vocab
from nca_jax.checkpoint.manifest import environment, leaf_table
from nca_jax.data import tokenizer as bpe
from nca_jax.errors import UserError, check
from nca_jax.hf import llama, torch_zip
from nca_jax.model.config import ModelConfig

WEIGHTS = 'model.safetensors'
# safetensors' names, and NumPy's.
DTYPES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
# Beginnings of names: Hugging Face's, and the release's.
RENAMED = {'model.embed_tokens': 'input_proj', 'lm_head': 'output_proj', 'model.': ''}
# DistributedDataParallel and torch.compile put these before every name.
WRAPPERS = ('module.', '_orig_mod.')


class WeightSource(NamedTuple):
    """A model outside, checked, but with its weights still unread."""

    path: pathlib.Path
    format: str
    model: ModelConfig
    # Rows of its tables, and how many of them are tokens, if that is known.
    rows: int
    tokens: int | None
    dtypes: set[str]
    # The array of one of Hugging Face's names.
    read: Callable[[str], np.ndarray]
    tokenizer: Tokenizer | None
    # Lines for people.
    notes: tuple[str, ...]


def read_folder(folder: pathlib.Path, heads: int | None) -> WeightSource:
    """A folder that LlamaForCausalLM.save_pretrained wrote, or export. UserError for any other."""
    config = folder / 'config.json'
    model, rows = llama.from_config(files.read_json(config), config)
    check(heads in (None, model.heads), '--heads', heads, f'is {model.heads} in {config}')
    places, shapes, dtypes = {}, {}, set()
    # Every file has its own table of contents, so their index isn't needed.
    for file in [folder / WEIGHTS] if (folder / WEIGHTS).exists() else sorted(folder.glob('*.safetensors')):
        with _open(file) as tensors:
            names = tensors.keys()
            for name in names:
                piece = tensors.get_slice(name)
                dtype = piece.get_dtype()
                check(dtype in DTYPES, f'{file}: dtype of {name}', dtype, f'must be {", ".join(DTYPES)}')
                if name in places:
                    raise UserError(f'{file}: {name} is in {places[name].name} too')
                places[name], shapes[name] = file, tuple(piece.get_shape())
                dtypes.add(DTYPES[dtype])
    llama.check_tensors(llama.tensor_shapes(model, rows), shapes, folder)

    def read_tensor(name: str) -> np.ndarray:
        with _open(places[name]) as tensors:
            return tensors.get_tensor(name)

    tokenizer, notes = None, ()
    if (folder / bpe.FILE).exists():
        try:
            tokenizer = bpe.load(str(folder / bpe.FILE))
        except UserError as error:
            notes = (f'without its tokenizer, which no stage could read: {error}',)
    tokens = rows if tokenizer is None else tokenizer.get_vocab_size()
    return WeightSource(folder, 'Hugging Face folder', model, rows, tokens, dtypes, read_tensor, tokenizer, notes)


def _open(file: pathlib.Path) -> Any:
    """A context with a safetensors file, read tensor by tensor."""
    try:
        return safe_open(str(file), framework='numpy')
    except (SafetensorError, OSError) as error:
        raise UserError(f'{file}: not a whole safetensors file ({error})') from None


def read_file(file: pathlib.Path, heads: int | None) -> WeightSource:
    """A file that the release's code wrote. UserError for any other."""
    if heads is None:
        raise UserError(f'{file}: --heads=N must say how many heads of attention it has, which is not in such a file')
    content = torch_zip.load(file)
    if not isinstance(content, dict) or not isinstance(content.get('model'), dict):
        keys = f'a dict with {", ".join(map(repr, content))[:200]}' if isinstance(content, dict) else 'no dict'
        raise UserError(f"{file}: must hold a dict with 'model', the parameters by name, and holds {keys}")
    tensors, notes = unwrap(content['model'])
    for name, tensor in tensors.items():
        kind = str(tensor.dtype) if isinstance(tensor, torch_zip.Tensor) else type(tensor).__name__
        check(kind in DTYPES.values(), f'{file}: {name!r}', kind, f'must be a tensor of {", ".join(DTYPES.values())}')
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    model, rows = from_shapes(shapes, heads, file)
    expected = {rename(name): shape for name, shape in llama.tensor_shapes(model, rows).items()}
    llama.check_tensors(expected, shapes, file)
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    if rest := ', '.join(repr(key) for key in content if key != 'model'):
        notes += (f'not carried over: {rest[:200]}',)

    def read_tensor(name: str) -> np.ndarray:
        return tensors[rename(name)].read()

    return WeightSource(file, 'checkpoint of PyTorch', model, rows, None, dtypes, read_tensor, None, notes)


def rename(name: str) -> str:
    """The release's name of a tensor of Hugging Face's."""
    for theirs, short in RENAMED.items():
        if name.startswith(theirs):
            return short + name.removeprefix(theirs)
    return name


def unwrap(tensors: Mapping[Any, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tensors without the prefixes of wrappers that all of them share, and a note that names these prefixes."""
    tensors, removed = {str(name): tensor for name, tensor in tensors.items()}, ''
    while tensors and (prefix := next((p for p in WRAPPERS if all(name.startswith(p) for name in tensors)), '')):
        tensors, removed = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, removed + prefix
    return tensors, (f'taken off every name: {removed}',) if removed else ()


def from_shapes(shapes: Mapping[str, tuple[int, ...]], heads: int, place: object) -> tuple[ModelConfig, int]:
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
        'head_bias': rename('lm_head.bias') in shapes,
    }
    return llama.model_config(shared), rows


def choose_vocab(source: WeightSource, size: int | None) -> Vocab:
    """The real rows of the tables: `size` of --vocab-size, which may be missing where rows and tokens agree."""
    rows, tokens = source.rows, source.tokens
    if size is None and tokens != rows:
        tokenizer = '' if tokens is None else f' and its tokenizer {tokens:,} tokens'
        wrong = f'its tables have {rows:,} rows{tokenizer}; --vocab-size=N must say how many rows are tokens'
        raise UserError(f'{source.path}: {wrong}')
    size = rows if size is None else size
    check(0 < size <= min(rows, MAX_VOCAB), '--vocab-size', size, f'must be 1 to {rows}, the rows of the tables')
    return Vocab(size)


def describe(source: WeightSource, stage: str, vocab: Vocab, params: dict[str, Any]) -> dict[str, Any]:
    """The content of run.json and the manifest: that of a run, but with llama.SHARED alone for a config."""
    model = {field: getattr(source.model, field) for field in llama.SHARED}
    content = [model, vocab.size, leaf_table(params)]
    tokenizer = {} if source.tokenizer is None else {'tokenizer': bpe.identity(source.tokenizer)}
    return {
        'name': source.path.resolve().name,
        'arm': 'adopted',
        'stage': stage,
        # Nothing was evaluated.
        'evaluator': '',
        'seed': 0,
        'identity': hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        'config': {'model': model},
        'parent': None,
        'data': {'adopted': source.format, **tokenizer},
        'vocab_size': vocab.size,
        'parameters': trees.count(params),
        'tokens_per_step': 0,
        'stop': 0,
        **environment(),
    }
