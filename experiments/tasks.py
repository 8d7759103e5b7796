"""Shared parts of the last stage's files: words, problems, benchmarks, and tuning on problems."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from experiments import common

# Words of gsm8k.py, humaneval.py and bigbench.py, with their defaults.
WORDS = {
    # tiny, 10m, 50m, 124m, 400m, 600m or 1b6.
    'size': '400m',
    # The folder of the run that the weights come from. '' starts from scratch.
    'parent': '',
    # text; or nca, dyck, copy, noise for a parent that has read no text: its tables are drawn fresh.
    'parent_stage': 'text',
    # A tokenizer.json, needed where the parent has none. '' takes the parent's.
    'tokenizer': '',
    # paper, or release (the published code) where it departs from the paper.
    'recipe': 'paper',
    # Sampling of the answers: script (as the release's scripts and the paper) or readme (as the release's README).
    'protocol': 'script',
    # The name under which reports group seeds. '' takes the name of the parent's folder.
    'arm': '',
    # No tuning: the parent answers as it is.
    'evaluate': False,
    # Of the fresh weights, the order of the problems and the samples.
    'seed': 0,
    # The same code in seconds on a CPU.
    'smoke': False,
}
# The release's README has one way of sampling for all three benchmarks.
PROTOCOLS = {'script': {}, 'readme': {'samples': 64, 'temperature': 0.4, 'top_p': 0.95}}


def problems(task: str, path: str = '', *, size: tuple[int, int] = (0, 0), **fields: Any) -> ConfigDict:
    """All problems of a task; `size` counts the training and test problems of a task that is made."""
    block = ConfigDict(
        {
            'task': task,
            'path': path,
            'train_rows': 0,
            'valid_rows': 64,
            'size': size,
        }
    )
    block.update(fields)
    return block


def benchmark(
    problems: ConfigDict,
    protocol: str = 'script',
    *,
    shots: int,
    max_tokens: int,
    stops: tuple[str, ...] = (),
    limit: int = 0,
    share: int = 8,
    **sampling: float,
) -> ConfigDict:
    """A benchmark on `problems`. The protocol may replace the numbers in `sampling`: samples, temperature, top_p."""
    sampling |= common.choose(PROTOCOLS, protocol, 'protocol')
    return ConfigDict(
        {
            'problems': problems,
            'limit': limit,
            'shots': shots,
            'samples': sampling.pop('samples'),
            'max_tokens': max_tokens,
            'stops': stops,
            'sampling': {'top_k': 0, **sampling},
            'batch': {'rows': 256, 'share': share, 'chunk': 32},
            'run_code': False,
        }
    )


def tuning(
    words: ConfigDict, benchmark: ConfigDict, *, length: int, lr: float, batch: int, stop: str, shots: tuple[int, int]
) -> ConfigDict:
    """An experiment that tunes words.parent on the benchmark's training problems and scores it before and after.

    `shots` is the least and the largest number of worked examples before a training problem.
    """
    release = common.is_release(words.recipe)
    plan = common.WHOLE
    if words.parent_stage != 'text':
        plan = common.transfer_plan('all', 1.0, common.fresh_tables(words.recipe, words.parent_stage))
    return common.experiment(
        words,
        name=benchmark.problems.task,
        arm=words.arm or pathlib.Path(words.parent).name or 'scratch',
        stage='instruct',
        data={
            'problems': benchmark.problems,
            'tokenizer': words.tokenizer,
            'shots': shots,
            'loss_on': 'all_answers' if release else 'target',
        },
        model=common.model(words.size, length=length, dropout=0.1, tied=not release),
        optimizer=common.optimizer(
            'adamw', lr, warmup='10%', horizon=stop, clip=1.0, clip_on='sum' if release else 'mean'
        ),
        # Micro-batches of 16 sequences, as in the second stage. The evaluations come before and after all updates.
        train=common.loop(batch=batch, accumulate=batch // 16, stop='0 steps' if words.evaluate else stop, every=stop),
        eval={'batch': 32, 'batches': 2},
        benchmark=benchmark,
        init_from=common.init_from(words.parent, plan),
    )
