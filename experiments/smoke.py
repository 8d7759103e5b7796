"""Changes that the word `smoke` makes to an experiment."""

from ml_collections import ConfigDict


def shrink(config: ConfigDict) -> None:
    """Makes a run so small that it takes seconds on a CPU, on the same code paths. Its numbers mean nothing."""
    config.model.update({'layers': 2, 'width': 32, 'heads': 2, 'ffn': 64, 'length': 64, 'remat': 'full', 'unroll': 1})
    config.model.dtype = 'float32'
    # A run without updates, which only evaluates, stays one.
    stop = '0 steps' if config.train.stop == '0 steps' else '6 steps'
    config.train.update({'batch': 8, 'accumulate': 1, 'stop': stop, 'keep': ()})
    config.train.update({'log_every': '1 steps', 'eval_every': '3 steps', 'save_every': '3 steps'})
    config.optimizer.schedule.update({'horizon': '6 steps', 'warmup': '2 steps'})
    config.eval.update({'batch': 8, 'batches': 2})
    if config.stage == 'nca':
        # One rule stays one.
        rules = min(config.data.rules_per_epoch, 48)
        config.data.update({'rules_per_epoch': rules, 'search_block': 8, 'stream_block': 8})
        # Three grids fit into the length.
        side = 4 * config.data.patch
        config.data.rule.update({'height': side, 'width': side})
    elif config.stage == 'copy':
        # Most of a row repeats.
        config.data.period = (4, 24)
    elif config.stage == 'text' and not config.data.tokenizer:
        config.data.vocab_size = 300
    elif config.stage == 'instruct':
        shrink_problems(config)


def shrink_problems(config: ConfigDict) -> None:
    """Few problems of the last stage, few and short answers."""
    # Lengths that a row of the made problems needs; worked solutions are longer.
    config.model.length = {'arithmetic': 64, 'choices': 256}.get(config.data.problems.task, 1024)
    config.data.shots = (0, 1) if config.data.shots[1] else (0, 0)
    config.benchmark.update({'limit': 2, 'shots': min(1, config.benchmark.shots), 'samples': 2, 'max_tokens': 8})
    config.benchmark.batch.update({'rows': 8, 'share': 1, 'chunk': 4})
    for problems in (config.data.problems, config.benchmark.problems):
        problems.valid_rows = 4
        # Problems that are made: training and test, or one number of rows that is divided later.
        if problems.size[0]:
            problems.size = (32, 4) if problems.size[1] else (40, 0)
