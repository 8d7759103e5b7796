"""Runs tasks of the lm-evaluation-harness on a run's model: likelihoods of choices and texts, and answers.

    python -m nca_jax.harness runs/code --tasks=lambada_openai,hellaswag --num-fewshot=0 --limit=100
    python -m nca_jax.harness runs/code --tasks=mine --include-path=tasks --out=mine.json

The package comes with `pip install nca_jax[harness]`; its tasks download their data. The run must have read text. All
devices work on a batch, each with whole weights. The same seed gives the same answers, whatever else is asked. Tasks
that would execute what the model writes are refused: nca_jax.evals.judge does that in a sandbox. Exit code 2 and one
line for bad input.

A context that doesn't fit is cut from the left. A continuation or a text that is longer than the model is read in
windows that predict every token once, each after as much as fits. An answer may take max_gen_toks tokens, but leaves
at least half of the model's length to its context where that is long.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from nca_jax import atomic, keys, run
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.data import tokenizer as bpe
from nca_jax.errors import UserError, check
from nca_jax.model import transformer
from nca_jax.model.config import ModelConfig
from nca_jax.model.decode import DecodeConfig, make_decoder
from nca_jax.model.loss import cross_entropy
from nca_jax.model.refill import Prompt
from nca_jax.model.sampling import Sampling
from nca_jax.model.stops import cut, make_stops
from nca_jax.progress import Progress, bars, silent
from nca_jax.report import tables

ROWS = 8  # sequences a device
CHUNK = 32  # tokens that are written before the host looks
LEAST_BUCKET = 32  # windows are padded to this times a power of two, so that few shapes are compiled
MAX_TOKENS = 256  # of an answer whose task doesn't say, as the harness has it
LIMITS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')  # names of one thing; the first wins
RESAMPLES = 1000  # for the standard errors that have no formula: good to 2 %
KNOWN = {*LIMITS, 'until', 'do_sample', 'temperature', 'top_p', 'top_k', 'num_beams'}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that reads text. rows: sequences of a batch over all devices of the mesh. seed: of sampled answers."""

    config: ModelConfig
    vocab: Vocab
    params: dict
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    rows: int
    seed: int

    @property
    def end(self) -> int:
        """The end of a text, after which the next one begins: what stands before a text without context."""
        return bpe.end_of_text(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


class Window(NamedTuple):
    """A piece that the model reads at once: tokens, of which the last `scored` are predicted from those before."""

    tokens: list[int]
    scored: int


class Likelihood(NamedTuple):
    """The log-probability of a continuation in nats, and whether it is what greedy decoding would write."""

    nats: float
    greedy: bool


@dataclasses.dataclass(frozen=True)
class Answering:
    """How requests are answered: `most` tokens, up to the first of the strings `until`."""

    sampling: Sampling
    until: tuple[str, ...]
    most: int


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog='python -m nca_jax.harness', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    manager, tasks = find_tasks(args.tasks.split(','), args.include_path)
    model, about = load(args.run, args.weights, args.batch, args.seed, args.tokenizer)
    try:
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
    except UserError:
        raise
    except (OSError, ValueError) as error:  # of data that can't be had, and of tasks that run code
        raise UserError(f'--tasks={args.tasks}: {" ".join(str(error).split())[:300]}') from error
    if out is not None:
        kept = ('results', 'groups', 'group_subtasks', 'versions', 'n-shot', 'n-samples', 'lm_eval_version')
        record = about | {'limit': limit} | {name: found[name] for name in kept if name in found}
        atomic.write(out, lambda file: file.write(json.dumps(record, indent=1, default=str).encode() + b'\n'))
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
    found = bpe.of_run(folder, manifest, tokenizer)
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


def encode_pair(model: Model, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of both as they are in the whole, where white space goes with what follows it.

    Without context the continuation follows the end of a text. Where a token would span both, so that the
    continuation has none of its own, it is encoded apart.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    if not kept:
        return [model.end], model.encode(continuation)
    before = model.encode(kept)
    return before, model.encode(kept + continuation)[len(before) :] or model.encode(continuation)


def windows(context: Sequence[int], continuation: Sequence[int], length: int) -> list[Window]:
    """What a model of `length` reads to predict each token of the continuation once, after the context.

    One window with what fits of the context; for a longer continuation several, of which the first holds the last
    token of the context alone and the others are full, as in lm_eval.utils.get_rolling_token_windows.
    """
    if not continuation:
        return []
    if len(continuation) <= length:
        return [Window([*context, *continuation][-(length + 1) :], len(continuation))]
    tokens, found = [context[-1], *continuation], []
    for start in range(0, len(continuation), length):
        end = min(start + length, len(continuation))
        found.append(Window(tokens[end - length : end + 1], end - start))
    return found


def likelihoods(
    model: Model, pairs: Sequence[tuple[list[int], list[int]]], progress: Progress = silent
) -> list[Likelihood]:
    """Of each continuation after its context, both as tokens; (0, True) for an empty one."""
    pieces = [windows(*pair, model.config.length) for pair in pairs]
    whose = [number for number, found in enumerate(pieces) for _ in found]
    nats, greedy = [0.0] * len(pairs), [True] * len(pairs)
    scores = score(model, [window for found in pieces for window in found], progress)
    for number, found in zip(whose, scores, strict=True):
        nats[number] += found.nats
        greedy[number] &= found.greedy
    return [Likelihood(*both) for both in zip(nats, greedy, strict=True)]


def score(model: Model, asked: Sequence[Window], progress: Progress = silent) -> list[Likelihood]:
    """Of the scored tokens of each window. The longest come first, so that a batch holds windows of like length."""
    order = sorted(range(len(asked)), key=lambda number: -len(asked[number].tokens))
    found: list[Likelihood | None] = [None] * len(asked)
    sharding = meshes.batch_sharding(model.mesh)
    for start in range(0, len(order), model.rows):
        numbers = order[start : start + model.rows]
        length = bucket(len(asked[numbers[0]].tokens) - 1, model.config.length)
        tokens_BxL1 = np.zeros((model.rows, length + 1), np.int32)
        for row, number in enumerate(numbers):
            tokens_BxL1[row, : len(asked[number].tokens)] = asked[number].tokens
        with meshes.use(model.mesh):
            batch = jax.device_put(tokens_BxL1, sharding)
            nll_BxL, likeliest_BxL = jax.device_get(measure(model.config, model.vocab, model.params, batch))
        for row, number in enumerate(numbers):
            last = len(asked[number].tokens) - 1
            scored = slice(last - asked[number].scored, last)
            nats = -float(np.sum(nll_BxL[row, scored], dtype=np.float64))
            found[number] = Likelihood(nats, bool(likeliest_BxL[row, scored].all()))
        progress('scored', start + len(numbers), len(order))
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def measure(config: ModelConfig, vocab: Vocab, params: dict, tokens_BxL1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each token but the first (B, L): its negative log-likelihood in nats, and whether it is the likeliest."""
    logits_BxLxV = transformer.apply(config, params, tokens_BxL1[:, :-1], vocab)
    targets_BxL = tokens_BxL1[:, 1:]
    return cross_entropy(logits_BxLxV, targets_BxL), jnp.argmax(logits_BxLxV, axis=-1) == targets_BxL


def bucket(length: int, most: int) -> int:
    """The padded length of a window."""
    return min(most, LEAST_BUCKET * 2 ** (-(-length // LEAST_BUCKET) - 1).bit_length())


def answering(options: Mapping[str, Any]) -> Answering:
    """From the generation_kwargs of a task: greedy unless it asks for samples. UserError for what we can't do."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        check(name in KNOWN, f'generation_kwargs.{name}', given[name], f'must be one of {", ".join(sorted(KNOWN))}')
    beams, until = given.get('num_beams', 1), given.get('until', [])
    check(beams == 1, 'generation_kwargs.num_beams', beams, 'must be 1: there is no beam search')
    sampled = given.get('do_sample', given.get('temperature', 0) > 0)
    temperature = float(given.get('temperature', 1.0)) if sampled else 0.0
    sampling = Sampling(temperature, float(given.get('top_p', 1.0)), max(0, given.get('top_k', 0)))
    most = int(next((given[name] for name in LIMITS if name in given), MAX_TOKENS))
    check(most > 0, f'generation_kwargs.{LIMITS[0]}', most, 'must be positive')
    return Answering(sampling, tuple(filter(None, [until] if isinstance(until, str) else until)), most)


def answers(model: Model, asked: Sequence[tuple[str, Mapping]], progress: Progress = silent) -> list[str]:
    """The text that follows each context, under its generation_kwargs; equal requests are sampled independently."""
    places = defaultdict(list)
    for place, (_, options) in enumerate(asked):
        places[answering(options)].append(place)
    found: dict[int, str] = {}
    for how, numbers in places.items():
        for number, text in _answers(model, how, [asked[place][0] for place in numbers]):
            found[numbers[number]] = text
            progress('answers', len(found), len(asked))
    return [found[place] for place in range(len(asked))]


def _answers(model: Model, how: Answering, contexts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Number and answer of each context, as soon as it has ended."""
    places = defaultdict(list)
    for place, context in enumerate(contexts):
        places[context].append(place)
    prompts, length, short = [], model.config.length, 0
    for context, numbers in places.items():
        tokens = fitting(model.encode(context) or [model.end], how.most, length)
        limit = min(how.most, length - len(tokens))
        short += (limit < how.most) * len(numbers)
        prompts.append(Prompt(np.array(tokens), int(keys.number(context)), range(len(numbers)), [limit] * len(numbers)))
    if short:
        what = f'of {len(contexts)} answers have room for fewer than {how.most} tokens in length {length}'
        print(f'warning: {short} {what}', file=sys.stderr)
    pieces = bpe.pieces(model.tokenizer)
    pieces += [b''] * (model.vocab.size - len(pieces))  # rows of adopted tables that are no tokens
    stops = make_stops([model.end], how.until, pieces)
    layout = DecodeConfig(model.rows, 1, CHUNK)
    decode = make_decoder(model.config, model.vocab, model.mesh, layout, how.sampling, stops)
    asked = list(places.values())
    for answer in decode(model.params, prompts, model.seed):
        yield asked[answer.prompt][answer.sample], cut(model.tokenizer.decode(answer.tokens.tolist()), how.until)


def fitting(context: list[int], most: int, length: int) -> list[int]:
    """The end of the context that leaves room for `most` tokens, or for half of the length where that is less."""
    return context[-(length - min(most, length // 2)) :]


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
