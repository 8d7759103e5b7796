"""Makes weights from elsewhere the parent of runs: a folder that init_from.run and the word parent= can start from.

    python -m nca_jax.hf.adopt hf/code --out=runs/theirs
    python -m nca_jax.hf.adopt nca.pt --out=runs/theirs --stage=nca --heads=32 --vocab-size=10002

Taken are a Hugging Face folder of a LlamaForCausalLM (config.json and safetensors) and a checkpoint of PyTorch that the
release of the paper's code wrote: a dict with `model` beside the optimizer's state, which isn't carried over. Such a
file tells neither the heads nor how many rows of its tables are real. It is read without PyTorch, and none of its code
runs.

A run that starts from the new folder needs a model of the same shape; what it must say is printed. Exit code 2 and one
line for bad input.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from nca_jax import files, folders, trees
from nca_jax.batch import MAX_VOCAB, Vocab
from nca_jax.checkpoint import manifest as manifests
from nca_jax.checkpoint.store import Store
from nca_jax.data import tokenizer as bpe
from nca_jax.errors import UserError, check
from nca_jax.hf import llama as hf
from nca_jax.hf import torch_zip
from nca_jax.stages import STAGES

RELEASE, HUGGING_FACE = 'checkpoint of PyTorch', 'Hugging Face folder'
WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
DTYPES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
WRAPPERS = ('module.', '_orig_mod.')  # what DistributedDataParallel and torch.compile put before every name


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights that haven't been read: `read` takes Hugging Face's names. `notes` are for people."""

    llama: hf.Llama
    rows: int
    dtypes: frozenset[str]
    read: Callable[[str], np.ndarray]
    tokenizer: Tokenizer | None
    format: str
    notes: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog='python -m nca_jax.hf.adopt', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('source', type=pathlib.Path, help="a Hugging Face folder, or a checkpoint's file")
    add('--out', type=pathlib.Path, required=True, help='a new folder, the --workdir of the run that it looks like')
    add('--stage', choices=tuple(STAGES), default='text', help='what it was trained on (text)')
    add('--heads', type=int, help='of attention; only for a file, which does not say')
    add('--vocab-size', type=int, help='how many rows of the tables are real tokens; the others are cut')
    add('--param-dtype', choices=('float32', 'bfloat16'), default='float32', help='of the parameters (float32)')
    args = parser.parse_args(argv)
    try:
        with files.new_folder(args.out, '--out') as folder:
            lines = adopt(args.source, folder, args.stage, args.heads, args.vocab_size, args.param_dtype)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print('\n'.join([*lines, str(args.out)]))
    return 0


def adopt(
    path: pathlib.Path, folder: pathlib.Path, stage: str, heads: int | None, vocab_size: int | None, dtype: str
) -> list[str]:
    """Fills `folder`, and says in a few lines with what."""
    source = read_folder(path, heads) if path.is_dir() else read_file(path, heads)
    vocab = choose_vocab(path, source, vocab_size)
    params = hf.imported(source.llama, source.read, vocab, jnp.dtype(dtype))
    about = describe(path, source, stage, vocab, params)
    with Store(folders.checkpoints(folder), keep=1) as store:
        store.save(0, {'params': params}, about | {'tokens': 0}, wait=True)
    if source.tokenizer is not None:
        source.tokenizer.save(str(folder / 'tokenizer.json'))
    record = about | {'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')}
    files.write(folder / 'run.json', json.dumps(record, indent=1))
    model = about['config']['model'] | {'param_dtype': dtype}
    needed = ('layers', 'width', 'heads', 'ffn', 'rope_theta', 'norm_eps', 'tied', 'param_dtype')
    dtypes = ' and '.join(sorted(source.dtypes))
    return [
        f'{path}: {source.format}, {trees.count(params):,} parameters, {dtypes} -> {dtype}',
        f'tables: {vocab.size:,} of {source.rows:,} rows, padded to {vocab.padded:,}',
        *source.notes,
        'a run that starts from it has ' + ' '.join(f'--config.model.{name}={model[name]}' for name in needed),
    ]


def describe(path: pathlib.Path, source: Source, stage: str, vocab: Vocab, params: dict[str, Any]) -> dict[str, Any]:
    """What run.json and the manifest say: what a run's say, but of the config only what is known of the model."""
    model = dataclasses.asdict(source.llama)
    content = [model, vocab.size, manifests.leaf_table(params)]
    tokenizer = {} if source.tokenizer is None else {'tokenizer': bpe.identity(source.tokenizer)}
    return {
        'name': path.resolve().name,
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
        **manifests.environment(),
    }


def choose_vocab(path: pathlib.Path, source: Source, asked: int | None) -> Vocab:
    """How many rows of the tables are real. A file doesn't say, and a folder may say two things."""
    rows = source.rows
    tokens = rows if source.tokenizer is None else source.tokenizer.get_vocab_size()
    if asked is None and source.format == RELEASE:
        raise UserError(f'{path}: its tables have {rows:,} rows; --vocab-size=N must say how many of them are tokens')
    if asked is None and tokens != rows:
        both = f'its tables have {rows:,} rows and its tokenizer {tokens:,} tokens'
        raise UserError(f'{path}: {both}; --vocab-size=N must say how many rows are tokens')
    size = rows if asked is None else asked
    check(0 < size <= min(rows, MAX_VOCAB), '--vocab-size', size, f'must be 1 to {rows}, the rows of the tables')
    return Vocab(size)


def read_folder(folder: pathlib.Path, heads: int | None) -> Source:
    """A folder that LlamaForCausalLM.save_pretrained wrote, or export. UserError for any other."""
    llama, rows = hf.from_config(read_json(folder / 'config.json'), folder / 'config.json')
    check(heads in (None, llama.heads), '--heads', heads, f'is {llama.heads} in {folder / "config.json"}')
    where = locate(folder)
    shapes, dtypes = {}, set()
    for file in sorted(set(where.values())):
        with opened(file) as tensors:
            for name in (name for name in where if where[name] == file):
                piece = tensors.get_slice(name)
                shapes[name] = tuple(piece.get_shape())
                known = piece.get_dtype() in DTYPES
                check(known, f'{file}: dtype of {name}', piece.get_dtype(), f'must be {", ".join(DTYPES)}')
                dtypes.add(DTYPES[piece.get_dtype()])
    hf.check_tensors(llama.their_shapes(rows), shapes, folder)

    def read(name: str) -> np.ndarray:
        with opened(where[name]) as tensors:
            return tensors.get_tensor(name)

    tokenizer, notes = None, ()
    if (folder / 'tokenizer.json').exists():
        try:
            tokenizer = bpe.load(str(folder / 'tokenizer.json'))
        except UserError as error:
            notes = (f'without its tokenizer, which no stage could read: {error}',)
    return Source(llama, rows, frozenset(dtypes), read, tokenizer, HUGGING_FACE, notes)


def locate(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Which file of the folder holds which tensor."""
    if (folder / WEIGHTS).exists():
        with opened(folder / WEIGHTS) as tensors:
            return dict.fromkeys(tensors.keys(), folder / WEIGHTS)
    if not (folder / INDEX).exists():
        raise UserError(f'{folder}: holds neither {WEIGHTS} nor {INDEX}')
    names = read_json(folder / INDEX).get('weight_map')
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise UserError(f'{folder / INDEX}: has no weight_map of tensors and files')
    for file in sorted(set(names.values())):
        if pathlib.PurePath(file).name != file:
            raise UserError(f'{folder / INDEX}: names the file {file!r}, which is not in the folder')
        with opened(folder / file) as tensors:
            lacking = {name for name in names if names[name] == file} - set(tensors.keys())
        if lacking:
            raise UserError(f'{folder / file}: lacks {min(lacking)}, which {INDEX} says it has')
    return {name: folder / file for name, file in names.items()}


def opened(file: pathlib.Path) -> Any:
    """A context with a safetensors file, read by the piece."""
    try:
        return safe_open(str(file), framework='numpy')
    except (SafetensorError, OSError) as error:
        raise UserError(f'{file}: not a whole safetensors file ({error})') from None


def read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text('utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: can't be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f'{file}: holds no JSON object')
    return content


def read_file(file: pathlib.Path, heads: int | None) -> Source:
    """A checkpoint that the release's code wrote. UserError for any other."""
    if heads is None:
        raise UserError(f'{file}: --heads=N must say how many heads of attention it has, which is not in such a file')
    content = torch_zip.load(file)
    if not isinstance(content, dict) or not isinstance(content.get('model'), dict):
        keys = f'a dict with {", ".join(map(repr, content))[:200]}' if isinstance(content, dict) else 'no dict'
        raise UserError(f"{file}: must hold a dict with 'model', the parameters by name, and holds {keys}")
    tensors, notes = unwrapped(content['model'])
    for name, tensor in tensors.items():
        known = isinstance(tensor, torch_zip.Tensor) and str(tensor.dtype) in DTYPES.values()
        kind = str(tensor.dtype) if isinstance(tensor, torch_zip.Tensor) else type(tensor).__name__
        check(known, f'{file}: {name!r}', kind, f'must be a tensor of {", ".join(DTYPES.values())}')
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    llama, rows = hf.from_shapes(shapes, heads, file)
    expected = {hf.released(name): shape for name, shape in llama.their_shapes(rows).items()}
    hf.check_tensors(expected, shapes, file)
    dtypes = frozenset(str(tensor.dtype) for tensor in tensors.values())
    left = ', '.join(repr(key) for key in content if key != 'model')[:200]
    notes += (f'not carried over: {left}',) if left else ()
    return Source(llama, rows, dtypes, lambda name: tensors[hf.released(name)].read(), None, RELEASE, notes)


def unwrapped(tensors: Mapping[Any, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tensors without the prefixes of wrappers that all of them share, and a note on what was taken off."""
    tensors, removed = {str(name): tensor for name, tensor in tensors.items()}, ''
    while tensors and (prefix := next((p for p in WRAPPERS if all(name.startswith(p) for name in tensors)), '')):
        tensors, removed = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, removed + prefix
    return tensors, (f'taken off every name: {removed}',) if removed else ()


if __name__ == '__main__':
    sys.exit(main())
