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


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('run', type=pathlib.Path, help='the folder of a run')
    add('--out', type=pathlib.Path, required=True, help='a new folder')
    add('--step', type=int, help='of the checkpoint (the newest)')
    weights = 'params, or ema, their average that optimizer.ema keeps (params)'
    add('--weights', choices=('params', 'ema'), default='params', help=weights)
    add('--dtype', choices=('float32', 'bfloat16'), default='float32', help='of the weights (float32)')


def run(args: argparse.Namespace) -> None:
    import jax

    from nca_jax import mesh as meshes
    from nca_jax import trees
    from nca_jax.data.tokenizer import load_of_run
    from nca_jax.hf import llama
    from nca_jax.run import load_model

    one_device = meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1])
    with files.new_folder(args.out, '--out') as out:
        model, vocab, params, manifest = load_model(args.run, one_device, args.weights, args.step)
        tokenizer = load_of_run(args.run, manifest)
        llama.write_folder(out, model, vocab, params, tokenizer, args.dtype)
    parameters = f'{trees.count(params):,} parameters ({args.weights}) as {args.dtype}'
    print(f'{args.run}, step {manifest["step"]}: {parameters}')
    print(f'tokenizer: {f"{tokenizer.get_vocab_size():,} tokens" if tokenizer else "none, since the run has none"}')
    print(args.out)
