"""Does pre-pre-training on automata help a small model of Python code? The whole idea in half an hour on two cores.

    bash launch/quickstart.sh            # all arms, five paired seeds, and the report
    bash launch/quickstart.sh reasoning  # then tunes every language model on arithmetic and counts right answers
    python -m nca_jax train --config=experiments/quickstart.py:arm=scratch,seed=0 --workdir=runs/scratch-0

- Arm automata is the pre-pre-training itself.
- Arm nca carries all its blocks (residual writers at a fifth) into a language model of the standard library's source.
- Arm only_attn carries attention alone.
- Arm scratch carries nothing.

At one seed every arm of the second stage draws its fresh weights from the same keys and sees the same batches of text.

Two cores, 31 minutes. Expected final losses in nats over five seeds: scratch 3.156 +- 0.018, nca 3.161 +- 0.020,
only_attn 3.162 +- 0.020 (95 % intervals): the seeds support no difference. `reasoning` takes 9 minutes more. Expected
pass@1: 24.3, 23.0 and 22.9 %; here, too, the seeds support no difference.
"""

from ml_collections import ConfigDict

from experiments import common, tasks

# Arms with a parent: the plan of each.
TRANSFER = {'nca': 'all', 'only_attn': 'only_attn'}

# Peak learning rate, and standard deviation of the fresh tables. Each arm of the second stage has the best point of the
# same grid (`bash launch/quickstart.sh grid`; NOTES.md beside this file has the losses).
BEST = {'automata': (1e-3, 0.04), 'scratch': (4e-3, 0.04), 'nca': (4e-3, 0.04), 'only_attn': (4e-3, 0.04)}
GRID = ((2e-3, 0.04), (4e-3, 0.01), (4e-3, 0.04), (4e-3, 0.16), (8e-3, 0.04))

# For all arms the better of 1e-3 and 4e-3 on one model.
TUNED_LR = 4e-3


def get_config(arg: str = '') -> ConfigDict:
    words = common.words(
        arg,
        # automata, scratch, nca or only_attn.
        arm='scratch',
        # Of the weights and the data; equal seeds make pairs.
        seed=0,
        # The folder of the automata run for nca and only_attn; with tuned, of the arm's language model.
        parent='',
        # A point of the grid: peak learning rate, and standard deviation of the fresh tables. 0 takes the arm's best.
        lr=0.0,
        tables=0.0,
        # Tunes the arm's language model on arithmetic.
        tuned=False,
        # The same code in seconds.
        smoke=False,
    )
    lr, tables = common.choose(BEST, words.arm, 'arm')
    if words.tuned:
        return arithmetic(words)
    if bool(words.parent) != (words.arm in TRANSFER):
        needed = f'must be a folder for {" and ".join(TRANSFER)}, and nothing for the other arms'
        raise ValueError(f'parent = {words.parent!r}: {needed}')
    at_best = not (words.lr or words.tables)
    words.update({'lr': words.lr or lr, 'tables': words.tables or tables})
    config = automata(words) if words.arm == 'automata' else language(words)
    if not at_best:
        config.arm += f' lr={words.lr:g} tables={words.tables:g}'
    return config


def model(table_std: float, length: int) -> ConfigDict:
    """1.3M parameters: small enough for a core, large enough to infer a rule in context."""
    config = common.model('tiny', length=length, dropout=0.0)
    config.update({'layers': 4, 'width': 128, 'heads': 4, 'ffn': 512, 'remat': 'none', 'unroll': 4, 'dtype': 'float32'})
    config.init.update({'residual': 'scaled', 'table_std': table_std, 'head': 'normal'})
    return config


def automata(words: ConfigDict) -> ConfigDict:
    """2.0M tokens of 8 x 8 automata in 4 colours, a rule for each sequence."""
    data = common.automata('paper', '50+')
    data.rule.update({'height': 8, 'width': 8, 'colours': 4, 'temperature': 1e-4})
    # 256 patch tokens fit into a byte. Scored so, the ratios lie elsewhere than the paper's.
    data.complexity.bytes_per_token = 1
    data.update({'band': (0.16, 0.5), 'rules_per_epoch': 8_000, 'stream_block': 2})
    return common.experiment(
        words,
        name='quickstart',
        arm=words.arm,
        stage='nca',
        data=data,
        model=model(words.tables, length=256),
        optimizer=optimizer(lr=words.lr, horizon='500 steps'),
        # Two sequences at a time stay in a core's cache, which makes a step 1.8 times as fast.
        train=common.loop(batch=16, accumulate=8, stop='500 steps', every='100 steps'),
        eval={'batch': 2, 'batches': 64},
    )


def language(words: ConfigDict) -> ConfigDict:
    """0.8M tokens of the standard library's source, from a fresh model or from the automata's."""
    plan = common.transfer_plan(TRANSFER.get(words.arm, 'all'), writers=0.2)
    return common.experiment(
        words,
        name='quickstart',
        arm=words.arm,
        stage='text',
        data=common.text('python_stdlib', vocab_size=1024),
        model=model(words.tables, length=256),
        optimizer=optimizer(lr=words.lr, horizon='200 steps'),
        # Two at a time, as in `automata`.
        train=common.loop(batch=16, accumulate=8, stop='200 steps', every='40 steps'),
        eval={'batch': 2, 'batches': 128},
        init_from=common.init_from(words.parent, plan),
    )


def arithmetic(words: ConfigDict) -> ConfigDict:
    """0.5M tokens of worked sums, products and orderings of small numbers, from a language model of this file.

    Before and after, the model answers 64 problems of each kind.
    """
    if not words.parent or words.arm == 'automata':
        raise ValueError(f'tuned: is for a language model of this file; name it by parent=, not {words.parent!r}')
    if words.tables:
        raise ValueError(f'tables = {words.tables:g}: tuned carries all tables, and draws none')
    problems = tasks.problems('arithmetic', size=(2000, 64))
    # All rows that share a prompt wait for the slowest: with 8 samples two are better than eight.
    benchmark = tasks.benchmark(problems, shots=0, max_tokens=48, share=2, samples=8, temperature=0.6, top_p=1.0)
    return common.experiment(
        words,
        name='quickstart',
        arm=f'{words.arm} lr={words.lr:g}' if words.lr else words.arm,
        stage='instruct',
        data={'problems': problems, 'tokenizer': '', 'shots': (0, 0), 'loss_on': 'target'},
        model=model(BEST[words.arm][1], length=72),
        optimizer=optimizer(lr=words.lr or TUNED_LR, horizon='200 steps'),
        train=common.loop(batch=32, accumulate=4, stop='200 steps', every='200 steps'),
        eval={'batch': 16, 'batches': 12},
        benchmark=benchmark,
        init_from=common.init_from(words.parent, common.WHOLE),
    )


def optimizer(*, lr: float, horizon: str) -> ConfigDict:
    """AdamW; the cosine schedule falls to a tenth of the peak."""
    return common.optimizer('adamw', lr, warmup='10%', horizon=horizon, final=0.1, b2=0.95, weight_decay=1e-4, clip=1.0)


def paired(seeds: range, words: str = '') -> dict[str, str]:
    """Every arm at every seed."""
    runs = {}
    for seed in seeds:
        for arm in BEST:
            parent = f',parent=automata-{seed}' if arm in TRANSFER else ''
            runs[f'{arm}-{seed}'] = f'arm={arm},seed={seed}{parent}{words}'
    return runs


def grid(seed: int) -> dict[str, str]:
    """Every arm of the second stage at every point of the grid."""
    runs = {f'automata-{seed}': f'arm=automata,seed={seed}'}
    for arm in ('scratch', *TRANSFER):
        parent = f',parent=automata-{seed}' if arm in TRANSFER else ''
        for lr, tables in GRID:
            runs[f'{arm}-{lr:g}-{tables:g}'] = f'arm={arm},seed={seed}{parent},lr={lr},tables={tables}'
    return runs


def tuned(seeds: range, words: str = '') -> dict[str, str]:
    """Every arm of the second stage at every seed, tuned on arithmetic."""
    arms = ('scratch', *TRANSFER)
    return {
        f'{arm}-{seed}-tuned': f'arm={arm},seed={seed},parent={arm}-{seed},tuned{words}'
        for seed in seeds
        for arm in arms
    }


STUDIES = {
    'main': paired(range(5)),
    'reasoning': tuned(range(5)),
    'smoke': paired(range(2), ',smoke'),
    'smoke-reasoning': tuned(range(2), ',smoke'),
    # A seed that the study doesn't use.
    'grid': grid(seed=100),
}
# The runs of a study may start from those of another.
CONTINUES = {'reasoning': 'main', 'smoke-reasoning': 'smoke'}
