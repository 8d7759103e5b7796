"""Runs tasks of the lm-evaluation-harness on a run's model: likelihoods of choices and texts, and answers.

    python -m nca_jax.evals.harness runs/code --tasks=lambada_openai,hellaswag --num-fewshot=0 --limit=100
    python -m nca_jax.evals.harness runs/code --tasks=mine --include-path=tasks --out=mine.json

The package comes with `pip install nca_jax[harness]`; its tasks download their data. The run must have read text. All
devices work on a batch, each with whole weights. The same seed gives the same answers, whatever else is asked. Tasks
that would execute what the model writes are refused: nca_jax judge does that in a sandbox. Exit code 2 and one
line for bad input.

A context that doesn't fit is cut from the left. A continuation or a text that is longer than the model is read in
windows that predict every token once, each after as much as fits. An answer may take max_gen_toks tokens, but leaves
at least half of the model's length to its context where that is long.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nca_jax import files, run
from nca_jax import mesh as meshes
from nca_jax.data import tokenizer as bpe
from nca_jax.errors import UserError, check
from nca_jax.evals.requests import Model, answers, encode_pair, likelihoods
from nca_jax.progress import Progress, bars, silent
from nca_jax.report import tables

ROWS = 8  # sequences a device
RESAMPLES = 1000  # for the standard errors that have no formula: good to 2 %


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog='python -m nca_jax.evals.harness',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('run', type=pathlib.Path, help='the folder of a run on text')
    add('--tasks', required=True, metavar='A,B', help='names of tasks, groups or tags; * stands for anything')
    add('--include-path', type=pathlib.Path, metavar='DIR', help='a folder with tasks of your own')
    add('--num-fewshot', type=int, metavar='N', help="worked examples before each question (the tasks' own number)")
    add('--limit', type=int, metavar='N', help='only the first N questions of each task')
    add('--batch', type=int, metavar='N', help=f'sequences at a time over all devices ({ROWS} a device)')
    add('--weights', choices=('params', 'ema'), default='params', help='params, or their average (params)')
    add('--seed', type=int, default=0, help='of sampled answers (0)')
    add('--tokenizer', type=pathlib.Path, help="the run's tokenizer.json, where it isn't found where the run had it")
    add('--out', type=pathlib.Path, metavar='FILE.json', help='write the results there too')
    args = parser.parse_args(argv)
    try:
        print(evaluate(args))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def evaluate(args: argparse.Namespace) -> str:
    """The table of results, which are written to --out where that is given."""
    out, limit, shots = args.out, args.limit, args.num_fewshot
    check(limit is None or limit > 0, '--limit', limit, 'must be positive')
    check(shots is None or shots >= 0, '--num-fewshot', shots, 'must be 0 or more')
    check(out is None or (out.absolute().parent.is_dir() and not out.is_dir()), '--out', str(out), 'must name a file')
    lm_eval = imported()
    # For its resamples the harness would fork, which may hang a process that has JAX's threads.
    os.environ.setdefault('DISABLE_MULTIPROC', '1')
    manager, names = find_tasks(args.tasks.split(','), args.include_path)
    model, about = load(args.run, args.weights, args.batch, args.seed, args.tokenizer)
    tasks = load_tasks(manager, names)
    with bars() as progress:
        found = lm_eval.simple_evaluate(
            make_lm(model, progress),
            tasks=tasks,
            task_manager=manager,
            num_fewshot=shots,
            limit=limit,
            batch_size=model.rows,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
        )
    if out is not None:
        kept = ('results', 'groups', 'group_subtasks', 'versions', 'n-shot', 'n-samples', 'lm_eval_version')
        record = about | {'limit': limit} | {name: found[name] for name in kept if name in found}
        files.write(out, json.dumps(record, indent=1, default=str).encode() + b'\n')
    return table(found)


def imported() -> Any:
    """The package, which nothing else here needs. UserError where it isn't installed."""
    try:
        import lm_eval
    except ModuleNotFoundError as error:
        if error.name != 'lm_eval':
            raise
        raise UserError("lm_eval isn't installed: pip install nca_jax[harness]") from None
    return lm_eval


def find_tasks(names: Sequence[str], folder: pathlib.Path | None) -> tuple[Any, list[str]]:
    """The harness's index of tasks with the folder's, and the names that are meant. UserError for unknown ones."""
    from lm_eval.tasks import TaskManager

    check(folder is None or folder.is_dir(), '--include-path', str(folder), 'must be a folder')
    manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        check(bool(manager.match_tasks([name])), '--tasks', name, 'is no task, group or tag that the harness knows')
    return manager, manager.match_tasks(list(names))


def load_tasks(manager: Any, names: Sequence[str]) -> list[Any]:
    """The tasks and groups of these names, with their data.

    UserError for data that can't be had, and for tasks that would run code or show pictures.
    """
    try:
        meant = [each for name in names for each in _load_name(manager, name)]
        single = manager.load(meant)['tasks']
    except (OSError, ValueError) as error:  # of data, and of names that mean one task twice
        raise UserError(f'--tasks={",".join(names)}: {" ".join(str(error).split())[:300]}') from error
    for name, task in single.items():
        code, pictures = (getattr(task, flag, False) for flag in ('UNSAFE_CODE', 'MULTIMODAL'))
        check(not code, '--tasks', name, 'is marked as unsafe: it would run code that a model wrote')
        check(not pictures, '--tasks', name, 'is for models that see pictures')
    return meant


def _load_name(manager: Any, name: str) -> list[Any]:
    """The group of that name, or the task, or the tasks of a tag."""
    found = manager.load(name)
    return [found['groups'][name]] if name in found['groups'] else list(found['tasks'].values())


def load(
    folder: pathlib.Path, weights: str, batch: int | None, seed: int, tokenizer: pathlib.Path | None
) -> tuple[Model, dict[str, Any]]:
    """The model of a run, and what tells it from others. UserError for one that has read no text."""
    mesh = meshes.make_mesh(meshes.MeshConfig(-1, 1, 1))
    devices = meshes.row_shards(mesh)
    rows = ROWS * devices if batch is None else batch
    check(rows > 0 and rows % devices == 0, '--batch', rows, f'must be a multiple of {devices} devices')
    check(0 <= seed < 2**32, '--seed', seed, 'must be in 0..2^32 - 1')
    config, vocab, params, manifest = run.load_model(folder, mesh, weights)
    found = bpe.load_of_run(folder, manifest, tokenizer)
    if found is None:
        raise UserError(f'{folder}: was trained on no text, so it has no tokenizer to read tasks with')
    tokens, allowed = found.get_vocab_size(), f'must have at most the {vocab.size} tokens of the tables'
    check(tokens <= vocab.size, 'tokenizer of tokens', tokens, allowed)
    about = {name: manifest[name] for name in ('name', 'arm', 'seed', 'identity', 'step', 'tokens')}
    return Model(config, vocab, params, found, mesh, rows, seed), about | {'weights': weights, 'sampling_seed': seed}


def make_lm(model: Model, progress: Progress = silent) -> Any:
    """The model as an lm_eval.api.model.LM, which simple_evaluate and evaluate take."""
    from lm_eval.api.model import LM

    class NcaLM(LM):
        """Requests to `likelihoods` and `answers`, results in their order."""

        def loglikelihood(self, requests) -> list[tuple[float, bool]]:
            pairs = [encode_pair(model, *request.args) for request in requests]
            return [tuple(found) for found in likelihoods(model, pairs, progress)]

        def loglikelihood_rolling(self, requests) -> list[float]:
            pairs = [([model.end], model.encode(text)) for (text,) in (request.args for request in requests)]
            return [found.nats for found in likelihoods(model, pairs, progress)]

        def generate_until(self, requests) -> list[str]:
            return answers(model, [request.args for request in requests], progress)

    return NcaLM()


def table(found: Mapping[str, Any]) -> str:
    """The results of simple_evaluate, a row a metric."""
    rows = []
    for task, values in (found['results'] | found.get('groups', {})).items():
        for key, value in values.items():
            metric, _, kind = key.partition(',')
            if not kind or metric.endswith('_stderr'):
                continue
            error = values.get(f'{metric}_stderr,{kind}')
            rows.append(
                {
                    'task': values.get('alias', task),
                    'filter': kind,
                    'shots': str(found['n-shot'].get(task, tables.NONE)),
                    'metric': metric,
                    'value': f'{value:.4f}' if isinstance(value, float) else str(value),
                    'standard error': f'{error:.4f}' if isinstance(error, float) else tables.NONE,
                }
            )
    return tables.table(rows)


if __name__ == '__main__':
    sys.exit(main())
