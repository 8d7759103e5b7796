"""Makes weights from elsewhere the parent of runs: a folder that init_from.run and the word parent= can start from.

    python -m nca_jax adopt hf/code --out=runs/theirs
    python -m nca_jax adopt nca.pt --out=runs/theirs --stage=nca --heads=32 --vocab-size=10002

It takes a Hugging Face folder of a LlamaForCausalLM (config.json and safetensors), or a checkpoint of PyTorch that the
release of the paper's code wrote: a dict with `model` beside the optimizer's state, which isn't carried over. Such a
file tells neither the heads nor how many rows of its tables are real. It is read without PyTorch, and none of its code
runs.

A run that starts from the new folder needs a model of the same shape; the command prints the fields.
"""

import argparse
import pathlib

from nca_jax import files
from nca_jax.errors import check

# A child's config must repeat these fields.
PRINTED = ('layers', 'width', 'heads', 'ffn', 'rope_theta', 'norm_eps', 'tied', 'param_dtype')


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('source', type=pathlib.Path, help="a Hugging Face folder, or a checkpoint's file")
    add('--out', type=pathlib.Path, required=True, help='a new folder, the --workdir of the run that it looks like')
    add('--stage', default='text', help='the stage that the weights were trained in (text)')
    add('--heads', type=int, help='of attention; only for a file, which does not say')
    add('--vocab-size', type=int, help='how many rows of the tables are real tokens; the others are cut')
    add('--param-dtype', choices=('float32', 'bfloat16'), default='float32', help='of the parameters (float32)')


def run(args: argparse.Namespace) -> None:
    import jax.numpy as jnp

    from nca_jax import folders, trees
    from nca_jax.checkpoint.store import Store
    from nca_jax.hf import llama, sources
    from nca_jax.stages import STAGES

    check(args.stage in STAGES, '--stage', args.stage, f'must be one of {", ".join(STAGES)}')
    with files.new_folder(args.out, '--out') as out:
        read = sources.read_folder if args.source.is_dir() else sources.read_file
        source = read(args.source, args.heads)
        vocab = sources.choose_vocab(source, args.vocab_size)
        params = llama.imported(source.model, source.read, vocab, jnp.dtype(args.param_dtype))
        about = sources.describe(source, args.stage, vocab, params)
        with Store(folders.checkpoints(out), keep=1) as store:
            store.save(0, {'params': params}, about | {'tokens': 0}, wait=True)
        if source.tokenizer is not None:
            source.tokenizer.save(str(out / 'tokenizer.json'))
        folders.write_record(out, about)
    dtypes = ' and '.join(sorted(source.dtypes))
    print(f'{args.source}: {source.format}, {trees.count(params):,} parameters, {dtypes} -> {args.param_dtype}')
    print(f'tables: {vocab.size:,} of {source.rows:,} rows, padded to {vocab.padded:,}')
    for note in source.notes:
        print(note)
    model = about['config']['model'] | {'param_dtype': args.param_dtype}
    print('a run that starts from it has ' + ' '.join(f'--config.model.{name}={model[name]}' for name in PRINTED))
    print(args.out)
