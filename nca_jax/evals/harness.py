"""Runs tasks of lm-evaluation-harness on a run's model: likelihoods of choices and texts, and answers.

    python -m nca_jax harness runs/code --tasks=lambada_openai,hellaswag --num-fewshot=0 --limit=100
    python -m nca_jax harness runs/code --tasks=mine --include-path=tasks --out=mine.json

`pip install nca_jax[harness]` installs the package; its tasks download their data. The run must have read text. Each
device holds the whole weights. The same seed gives the same answers, whatever else is asked.

- A context that doesn't fit is cut from the left.
- A continuation or a text longer than the model is read in windows, which predict every token once.
- An answer may take max_gen_toks tokens, but a long context keeps at least half of the model's length.
- Tasks that would run code of the model's are refused: nca_jax judge does that in a sandbox.
"""

import argparse
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from nca_jax import files
from nca_jax.errors import UserError, check
from nca_jax.progress import bars

# Sequences that a device reads at a time, unless --batch says otherwise.
ROWS = 8
# Standard errors without a formula come from so many resamples, which makes them good to 2 %.
RESAMPLES = 1000


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('run', type=pathlib.Path, help='the folder of a run on text')
    add('--tasks', required=True, metavar='A,B', help='names of tasks, groups or tags; * stands for anything')
    add('--include-path', type=pathlib.Path, metavar='DIR', help='a folder with tasks of your own')
    add('--num-fewshot', type=int, metavar='N', help="worked examples before each question (the tasks' own number)")
    add('--limit', type=int, metavar='N', help='only the first N questions of each task')
    add('--batch', type=int, metavar='N', help=f'sequences at a time over all devices ({ROWS} a device)')
    add('--weights', choices=('params', 'ema'), default='params', help='params, or ema, their average (params)')
    add('--seed', type=int, default=0, help='of sampled answers (0)')
    add('--out', type=pathlib.Path, metavar='FILE.json', help='write the results there too')


def run(args: argparse.Namespace) -> None:
    out, limit, shots = args.out, args.limit, args.num_fewshot
    check(limit is None or limit > 0, '--limit', limit, 'must be positive')
    check(shots is None or shots >= 0, '--num-fewshot', shots, 'must be 0 or more')
    check(out is None or (out.absolute().parent.is_dir() and not out.is_dir()), '--out', str(out), 'must name a file')
    try:
        import lm_eval
        from lm_eval.utils import make_table
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} isn't installed: pip install nca_jax[harness]") from None
    from nca_jax.evals import requests

    # For its resamples the harness would fork, which may hang a process that has JAX's threads.
    os.environ.setdefault('DISABLE_MULTIPROC', '1')
    # Before the weights, which take longer to load than a misspelt task to find.
    manager, tasks = load_tasks(args.tasks.split(','), args.include_path)
    model, about = load(args.run, args.weights, args.batch, args.seed)
    with bars() as progress:
        results = lm_eval.simple_evaluate(
            requests.make_lm(model, progress),
            tasks=tasks,
            task_manager=manager,
            num_fewshot=shots,
            limit=limit,
            batch_size=model.rows,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
        )
    if out is not None:
        # The harness's own configs hold types and functions.
        files.write(out, json.dumps(about | results, indent=1, default=str) + '\n')
    print(*(make_table(results, part) for part in ('results', 'groups') if part in results), sep='\n')


def load(folder: pathlib.Path, weights: str, batch: int | None, seed: int) -> tuple[Any, dict[str, Any]]:
    """(the `requests.Model` of a run, the fields that identify it). Raises UserError if the run has read no text."""
    from nca_jax import mesh as meshes
    from nca_jax.data.tokenizer import load_of_run
    from nca_jax.evals.requests import Model
    from nca_jax.run import load_model

    mesh = meshes.make_mesh(meshes.MeshConfig(-1, 1, 1))
    devices = meshes.row_shards(mesh)
    rows = ROWS * devices if batch is None else batch
    check(rows > 0 and rows % devices == 0, '--batch', rows, f'must be a multiple of {devices} devices')
    check(0 <= seed < 2**32, '--seed', seed, 'must be in 0..2^32 - 1')
    config, vocab, params, manifest = load_model(folder, mesh, weights)
    bpe = load_of_run(folder, manifest)
    if bpe is None:
        raise UserError(f'{folder}: was trained on no text, so it has no tokenizer to read tasks with')
    tokens, allowed = bpe.get_vocab_size(), f"must be at most {vocab.size}, the model's vocabulary"
    check(tokens <= vocab.size, 'tokens of the tokenizer', tokens, allowed)
    about = {name: manifest[name] for name in ('name', 'arm', 'seed', 'identity', 'step', 'tokens')}
    return Model(config, vocab, params, bpe, mesh, rows, seed), about | {'weights': weights, 'sampling_seed': seed}


def load_tasks(names: Sequence[str], folder: pathlib.Path | None) -> tuple[Any, list[Any]]:
    """(the harness's TaskManager with the folder's tasks, the named tasks and groups with their data).

    Raises UserError for unknown names, if data is missing, and for tasks that would run code.
    """
    from lm_eval.tasks import TaskManager

    check(folder is None or folder.is_dir(), '--include-path', str(folder), 'must be a folder')
    manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        check(bool(manager.match_tasks([name])), '--tasks', name, 'is no task, group or tag that the harness knows')
    try:
        tasks = []
        for name in manager.match_tasks(list(names)):
            loaded = manager.load(name)
            # A name is of a group, a task, or a tag of several tasks.
            tasks += [loaded['groups'][name]] if name in loaded['groups'] else loaded['tasks'].values()
        single = manager.load(tasks)['tasks']
    # ValueError: two names mean the same task.
    except (OSError, ValueError) as error:
        raise UserError(f'--tasks={",".join(names)}: {" ".join(str(error).split())[:300]}') from error
    for name, task in single.items():
        # The harness runs such code without a sandbox.
        unsafe = getattr(task, 'UNSAFE_CODE', False)
        check(not unsafe, '--tasks', name, 'is marked as unsafe: it would run code that a model wrote')
    return manager, tasks
