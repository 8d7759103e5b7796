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
import hashlib
import json
import pathlib

from nca_jax import files
from nca_jax.errors import check


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
    from nca_jax.batch import Vocab
    from nca_jax.checkpoint.manifest import environment, leaf_table
    from nca_jax.checkpoint.store import Store
    from nca_jax.data import tokenizer as bpe
    from nca_jax.hf import llama
    from nca_jax.stages import STAGES

    check(args.stage in STAGES, '--stage', args.stage, f'must be one of {", ".join(STAGES)}')
    with files.new_folder(args.out, '--out') as out:
        if args.source.is_dir():
            check(args.heads is None, '--heads', args.heads, "is only for a file; a folder's config.json says it")
            source = llama.read_folder(args.source)
        else:
            check(args.heads is not None, '--heads', args.heads, 'must be given for a file, which does not say it')
            source = llama.read_checkpoint(args.source, args.heads)
        # Rows beyond the tokens are padding of the tables, which only the user can tell from tokens.
        size = source.tokens if args.vocab_size is None else args.vocab_size
        allowed = f'must be 1 to {source.rows}: how many of the {source.rows:,} rows of its tables are tokens'
        check(size is not None and 0 < size <= source.rows, '--vocab-size', size, allowed)
        vocab = Vocab(size)
        params = llama.imported(source.model, source.read, vocab, jnp.dtype(args.param_dtype))
        model, tokenizer = {field: getattr(source.model, field) for field in llama.SHARED}, source.tokenizer
        # Equal weights have one identity; their source doesn't matter.
        content = [model, vocab.size, leaf_table(params)]
        # As a run's, but with no more of a config than what the weights show, and nothing was evaluated.
        record = {
            'name': args.source.resolve().name,
            'arm': 'adopted',
            'stage': args.stage,
            'evaluator': '',
            'seed': 0,
            'identity': hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
            'config': {'model': model},
            'parent': None,
            'data': {'tokenizer': bpe.identity(tokenizer)} if tokenizer else {},
            'vocab_size': vocab.size,
            'parameters': trees.count(params),
            'tokens_per_step': 0,
            'stop': 0,
            **environment(),
        }
        with Store(folders.checkpoints(out), keep=1) as store:
            # A child reads it as it reads any parent: a checkpoint of step 0.
            store.save(0, {'params': params}, record | {'tokens': 0}, wait=True)
        if tokenizer:
            tokenizer.save(str(out / bpe.FILE))
        folders.write_record(out, record)
    print(f'{args.source}: {trees.count(params):,} parameters as {args.param_dtype}')
    print(f'tables: {vocab.size:,} of {source.rows:,} rows, padded to {vocab.padded:,}')
    print(f'tokenizer: {bpe.FILE if tokenizer else "none that a stage can read"}')
    fields = model | {'param_dtype': args.param_dtype}
    # Plans drop a bias of the head, and a model may become longer.
    repeated = [f'--config.model.{name}={fields[name]}' for name in fields if name not in ('length', 'head_bias')]
    print('a run that starts from it has ' + ' '.join(repeated))
    print(args.out)
