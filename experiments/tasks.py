"""What the experiments of the last stage share: problems, the ways of asking them, and tuning on them."""

import pathlib

from ml_collections import ConfigDict

from experiments import common

# What the release's scripts do (arXiv 2603.10055 says the same); README is what its README says of all three instead.
PROTOCOLS = {
    'gsm8k': {'shots': 3, 'samples': 32, 'max_tokens': 250, 'temperature': 0.6, 'top_p': 1.0},
    'humaneval': {'shots': 0, 'samples': 64, 'max_tokens': 500, 'temperature': 0.4, 'top_p': 0.95},
    'bigbench': {'shots': 2, 'samples': 64, 'max_tokens': 35, 'temperature': 0.4, 'top_p': 0.95},
}
README = {'samples': 64, 'temperature': 0.4, 'top_p': 0.95}
WORDS = {'size': '400m', 'parent': '', 'parent_stage': 'text', 'tokenizer': '', 'recipe': 'paper', 'protocol': 'script'}
WORDS |= {'arm': '', 'evaluate': False, 'seed': 0, 'smoke': False}
WHOLE = (('.*', 'carry'),)  # the plan for a parent that has read text in the same tokens


def problems(task: str, path: str = '', *, size: tuple[int, int] = (0, 0), valid_rows: int = 64) -> ConfigDict:
    """All of a task's problems; `size` of those that are made."""
    return ConfigDict(
        {
            'task': task,
            'path': path,
            'train_rows': 0,
            'least_rows': 0,
            'valid_rows': valid_rows,
            'size': size,
        }
    )


def benchmark(name: str, problems: ConfigDict, protocol: str, stops: tuple[str, ...] = ()) -> ConfigDict:
    """The paper's way of asking `name`'s problems; protocol is 'script' or 'readme', the two that the release has."""
    chosen = PROTOCOLS[name] | common.choose({'script': {}, 'readme': README}, protocol, 'protocol')
    return ConfigDict(
        {
            'problems': problems,
            'limit': 0,
            'shots': chosen['shots'],
            'samples': chosen['samples'],
            'max_tokens': chosen['max_tokens'],
            'stops': stops,
            'sampling': {'temperature': chosen['temperature'], 'top_p': chosen['top_p'], 'top_k': 0},
            'batch': {'rows': 256, 'share': 8, 'chunk': 32},
            'run_code': False,
        }
    )


def tuning(
    words: ConfigDict, asked: ConfigDict, *, lr: float, batch: int, stop: str, shots: tuple[int, int]
) -> ConfigDict:
    """An experiment that carries words.parent over, tunes it on the problems that `asked` has for training, and puts
    those of test to it before and after; the word `evaluate` leaves the tuning out. The parent is carried whole or,
    where parent_stage says that it has read no text, without its tables."""
    release = common.is_release(words.recipe)
    llama = common.model(words.size, length=1024, dropout=0.1)
    llama.tied = not release
    optimizer = common.adamw(lr, warmup='10%', horizon=stop)
    optimizer.update({'clip': 1.0, 'clip_on': 'sum' if release else 'mean'})
    data = {
        'problems': asked.problems,
        'tokenizer': words.tokenizer,
        'shots': shots,
        'loss_on': 'all_answers' if release else 'target',
    }
    plan = WHOLE
    if words.parent_stage != 'text':
        plan = common.transfer_plan('all', 1.0, common.fresh_tables(words.recipe, words.parent_stage))
    config = common.experiment(
        name=asked.problems.task,
        arm=words.arm or pathlib.Path(words.parent).name or 'scratch',
        stage='instruct',
        seed=words.seed,
        smoke=words.smoke,
        data=data,
        model=llama,
        optimizer=optimizer,
        train=common.loop(batch=batch, stop='0 steps' if words.evaluate else stop, every=stop),
        eval={'batch': 32, 'batches': 2},
        benchmark=asked,
        init_from=common.init_from(words.parent, plan) if words.parent else None,
    )
    config.train.accumulate = batch // 16
    if words.smoke:
        shrink(config)
    return config


def shrink(config: ConfigDict) -> None:
    """`smoke` for this stage: few problems, few and short answers."""
    stop = config.train.stop
    common.shrink(config)
    config.model.length = {'arithmetic': 64, 'choices': 256}.get(config.data.problems.task, 1024)
    config.train.stop = stop if stop == '0 steps' else config.train.stop
    config.data.shots = (0, 1) if config.data.shots[1] else (0, 0)
    config.benchmark.update({'limit': 2, 'shots': min(1, config.benchmark.shots), 'samples': 2, 'max_tokens': 8})
    config.benchmark.batch.update({'rows': 8, 'share': 1, 'chunk': 4})
    for asked in (config.data.problems, config.benchmark.problems):
        asked.valid_rows = 4
        if asked.size[0]:
            asked.size = (32, 4) if asked.size[1] else (40, 0)
