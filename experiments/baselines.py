"""Stage 1 on other data than automata: the paper's controls (arXiv 2603.10055), 164M tokens.

    python -m nca_jax train --config=experiments/baselines.py:source=dyck,size=1b6 --workdir=runs/dyck-1b6

The second stage starts from its model: experiments/language.py:parent=runs/dyck-1b6,parent_stage=dyck. The control with
text, C4, is experiments/language.py:corpus=c4. The paper publishes neither the recipe nor a loss of this stage; all
sources take the recipe of nca_pretrain.py. Nobody ran this size with this code. At a smaller size:

    python -m nca_jax train --config=experiments/baselines.py:size=10m --config.model.length=256 \
        --config.train.stop='2M tokens' --config.train.keep='()' --workdir=runs/try
"""

from ml_collections import ConfigDict

from experiments import common

# Source: (stage, data). A token of copy and noise is one of 10,000, as many as the paper's automata have patches.
SOURCES = {
    # The paper's k-Dyck: 64 kinds of brackets, 128 tokens, nested to at most 16.
    'dyck': ('dyck', {'kinds': 64, 'depth': 16, 'p_open': 0.5, 'shuffle': False}),
    # A closing bracket closes any open one, not the innermost.
    'shuffle_dyck': ('dyck', {'kinds': 64, 'depth': 16, 'p_open': 0.5, 'shuffle': True}),
    # Ours: a segment of 64 to 512 tokens again and again teaches induction alone.
    'copy': ('copy', {'size': 10_000, 'period': (64, 512)}),
    # Ours: independent tokens teach nothing. No loss is below ln 10,000 = 9.21 nats.
    'noise': ('noise', {'size': 10_000}),
}


def get_config(arg: str = '') -> ConfigDict:
    words = common.words(
        arg,
        # dyck, shuffle_dyck, copy or noise: see SOURCES.
        source='dyck',
        # tiny, 10m, 50m, 124m, 400m, 600m or 1b6.
        size='400m',
        # paper, or release (the published code) where it departs from the paper.
        recipe='paper',
        # adamw, adam or muon. '' takes adam, as published for automata.
        optimizer='',
        # Of the weights and the data.
        seed=0,
        # The same code in seconds on a CPU.
        smoke=False,
    )
    release = common.is_release(words.recipe)
    stage, data = common.choose(SOURCES, words.source, 'source')
    return common.experiment(
        words,
        name='baselines',
        arm=f'{words.source} {words.optimizer}'.strip(),
        stage=stage,
        data=data,
        model=common.model(words.size, length=1024, dropout=0.1, tied=not release, head_bias=release),
        # The run stops where the warm-up ends, at a tenth of the schedule.
        optimizer=common.optimizer(
            words.optimizer or 'adam',
            lr=1e-4,
            warmup='163.84M tokens',
            horizon='1638.4M tokens',
            clip_on='sum' if release else 'mean',
        ),
        # 10,000 updates of 16 sequences (paper) or 5,000 of 32 (release). Both checkpoints are kept for good.
        train=common.loop(batch=32 if release else 16, stop='163.84M tokens', keep=('81.92M tokens', '163.84M tokens')),
        eval={'batch': 32, 'batches': 16},
    )
