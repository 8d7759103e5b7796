"""Writes a run's weights as a Hugging Face folder, which LlamaForCausalLM and what builds on it can load.

    python -m nca_jax.hf.export runs/code --out=hf/code

Written are config.json, the weights as safetensors (in several files with an index where they are large) and, for runs
on text, tokenizer.json with tokenizer_config.json. Then `transformers.AutoModelForCausalLM.from_pretrained('hf/code')`
gives the same logits, and AutoTokenizer the same tokens. The vocabulary's padding is cut, tied tables stay tied. A head
with a bias (recipe=release, first stages) has no place in that format and is refused. Exit code 2 and one line for bad
input.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from nca_jax import files, folders, trees
from nca_jax.batch import Vocab
from nca_jax.checkpoint.store import read_manifest, restore_params, saved_params
from nca_jax.data import tokenizer as bpe
from nca_jax.errors import UserError
from nca_jax.hf import llama as hf

SHARD_BYTES = 2 << 30  # of one file, and of what is held besides the parameters themselves


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog='python -m nca_jax.hf.export', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('run', type=pathlib.Path, help='the folder of a run')
    add('--out', type=pathlib.Path, required=True, help='a new folder')
    add('--step', type=int, help='of the checkpoint (the newest)')
    add(
        '--weights',
        choices=('params', 'ema'),
        default='params',
        help='params, or their average that optimizer.ema keeps',
    )
    add('--dtype', choices=('float32', 'bfloat16'), default='float32', help='of the weights (float32)')
    add('--tokenizer', type=pathlib.Path, help="the run's tokenizer.json, where it isn't found where the run had it")
    args = parser.parse_args(argv)
    try:
        with files.new_folder(args.out, '--out') as folder:
            lines = export(args.run, folder, args.step, args.weights, args.dtype, args.tokenizer)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print('\n'.join([*lines, str(args.out)]))
    return 0


def export(
    source: pathlib.Path,
    folder: pathlib.Path,
    step: int | None,
    weights: str,
    dtype: str,
    tokenizer: pathlib.Path | None,
) -> list[str]:
    """Fills `folder`, and says in a few lines with what."""
    checkpoints = folders.checkpoints(source)
    manifest = read_manifest(checkpoints, step)
    llama, vocab = hf.Llama.of(manifest['config']['model']), Vocab(manifest['vocab_size'])
    found = bpe.load_of_run(source, manifest, tokenizer)
    end = None if found is None else found.token_to_id(bpe.END_OF_TEXT)
    write_json(folder / 'config.json', hf.to_config(llama, vocab, end, dtype))
    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    saved = saved_params(manifest, weights)
    if not saved:
        raise UserError(f'--weights={weights}: {source} kept no average of its weights (its optimizer.ema is None)')
    params, manifest = restore_params(checkpoints, step, dict.fromkeys(saved, whole), weights)
    files = write_weights(hf.exported(llama, params, vocab, jnp.dtype(dtype)), folder)
    if found is not None:
        found.save(str(folder / bpe.FILE))
        write_json(folder / 'tokenizer_config.json', tokenizer_config(llama.length, end))
    return [
        f'{source}, step {manifest["step"]}: {trees.count(params):,} parameters ({weights}) as {dtype}',
        f'tables: {vocab.size:,} rows, without the {vocab.padded - vocab.size} of padding; files of weights: {files}',
        'tokenizer: none, since the run has none' if found is None else f'tokenizer: {found.get_vocab_size():,} tokens',
    ]


def write_weights(tensors: Iterator[tuple[str, np.ndarray]], folder: pathlib.Path) -> int:
    """The number of files: one, or several of about SHARD_BYTES with an index of which tensor is in which."""
    shards: list[dict[str, int]] = []  # names and bytes
    held: dict[str, np.ndarray] = {}

    def flush() -> None:
        file = folder / f'{len(shards)}.safetensors'
        save_file(held, file, metadata={'format': 'pt'})
        file.chmod(folder.stat().st_mode & 0o666)  # it is closed to others at first
        shards.append({name: tensor.nbytes for name, tensor in held.items()})
        held.clear()

    for name, tensor in tensors:
        if held and sum(other.nbytes for other in held.values()) + tensor.nbytes > SHARD_BYTES:
            flush()
        held[name] = tensor
    flush()
    names = [f'model-{number + 1:05}-of-{len(shards):05}.safetensors' for number in range(len(shards))]
    if len(shards) == 1:
        names = ['model.safetensors']
    else:
        index = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(sum(shard.values()) for shard in shards)
        write_json(folder / 'model.safetensors.index.json', {'metadata': {'total_size': total}, 'weight_map': index})
    for number, name in enumerate(names):
        (folder / f'{number}.safetensors').rename(folder / name)
    return len(shards)


def tokenizer_config(length: int, end_of_text: int | None) -> dict[str, Any]:
    special = {} if end_of_text is None else dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), bpe.END_OF_TEXT)
    return {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'model_max_length': length,
        'model_input_names': ['input_ids', 'attention_mask'],
        'clean_up_tokenization_spaces': False,
        **special,
    }


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + '\n')


if __name__ == '__main__':
    sys.exit(main())
