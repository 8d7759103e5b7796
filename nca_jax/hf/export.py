"""Writes a run's weights as a Hugging Face folder, which LlamaForCausalLM and what builds on it can load.

    python -m nca_jax export runs/code --out=hf/code

It writes config.json, model.safetensors and, for runs on text, tokenizer.json with tokenizer_config.json. Then
`transformers.AutoModelForCausalLM.from_pretrained('hf/code')` gives the same logits, and AutoTokenizer the same tokens.
The vocabulary's padding is cut, tied tables stay tied.

Not covered: a head with a bias (recipe=release, first stages), for which that format has no place.
"""

import argparse
import pathlib

from nca_jax import files
from nca_jax.errors import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('run', type=pathlib.Path, help='the folder of a run')
    add('--out', type=pathlib.Path, required=True, help='a new folder')
    add('--step', type=int, help='of the checkpoint (the newest)')
    weights = 'params, or ema, their average that optimizer.ema keeps (params)'
    add('--weights', choices=('params', 'ema'), default='params', help=weights)
    add('--dtype', choices=('float32', 'bfloat16'), default='float32', help='of the weights (float32)')
    add('--tokenizer', type=pathlib.Path, help="the run's tokenizer.json, if it has left its place")


def run(args: argparse.Namespace) -> None:
    import jax

    from nca_jax import trees
    from nca_jax.batch import Vocab
    from nca_jax.checkpoint.store import read_manifest, restore_params, saved_params
    from nca_jax.data.tokenizer import load_of_run
    from nca_jax.folders import checkpoints
    from nca_jax.hf import llama

    manifest = read_manifest(checkpoints(args.run), args.step)
    model, vocab = llama.model_config(manifest['config']['model']), Vocab(manifest['vocab_size'])
    tokenizer = load_of_run(args.run, manifest, args.tokenizer)
    with files.new_folder(args.out, '--out') as out:
        # First, since it refuses what the format can't hold before any weights are read.
        llama.write_config(out, model, vocab, tokenizer, args.dtype)
        one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        layout = dict.fromkeys(saved_params(manifest, args.weights), one_device)
        if not layout:
            raise UserError(f'--weights={args.weights}: {args.run} kept no average of its weights (optimizer.ema=None)')
        params, manifest = restore_params(checkpoints(args.run), args.step, layout, args.weights)
        llama.write_weights(out, params, vocab, jax.numpy.dtype(args.dtype))
    parameters = f'{trees.count(params):,} parameters ({args.weights}) as {args.dtype}'
    print(f'{args.run}, step {manifest["step"]}: {parameters}')
    print(f'tables: {vocab.size:,} rows, without the {vocab.padded - vocab.size} of padding')
    print(f'tokenizer: {f"{tokenizer.get_vocab_size():,} tokens" if tokenizer else "none, since the run has none"}')
    print(args.out)
