"""Stage 1 on something else than automata: the paper's controls (arXiv 2603.10055), at its 164M tokens.

    python -m nca_jax train --config=experiments/baselines.py:source=dyck,size=1b6 --workdir=runs/dyck-1b6

Sources: `dyck` is the paper's k-Dyck, 64 kinds of brackets (128 tokens) that open half the time, nested to at most 16;
`shuffle_dyck` closes any open bracket in place of the innermost. `copy` and `noise` are ours, over the 10,000 patches
that automata have: a segment of 64 to 512 tokens again and again, which teaches induction alone, and independent
tokens, which teach nothing (ln 10,000 = 9.21 nats is the best there is).

Dyck's recipe was not released: it has the automata stage's, and so have the others: 163.84M tokens, which end with the
warm-up of a schedule ten times as long. The models go into the second stage like an automata run:
experiments/language.py:parent=runs/dyck-1b6,parent_stage=dyck. Text as the control, C4, is
experiments/language.py:corpus=c4. The paper publishes no loss of this stage, and no run of this
size was made here yet. At smaller sizes:

    python -m nca_jax train --config=experiments/baselines.py:size=10m --config.model.length=256 \
        --config.train.stop='2M tokens' --config.train.keep='()' --workdir=runs/try
"""

from ml_collections import ConfigDict

from experiments import common

SOURCES = {
    'dyck': ('dyck', {'kinds': 64, 'depth': 16, 'p_open': 0.5, 'shuffle': False}),
    'shuffle_dyck': ('dyck', {'kinds': 64, 'depth': 16, 'p_open': 0.5, 'shuffle': True}),
    'copy': ('copy', {'size': 10_000, 'period': (64, 512)}),
    'noise': ('noise', {'size': 10_000}),
}


def get_config(arg: str = '') -> ConfigDict:
    """Words: source (dyck, shuffle_dyck, copy, noise), size, recipe (paper or release, where they differ), optimizer
    (adam, adamw or muon; without one the published, which is adam), seed, smoke."""
    words = common.words(arg, source='dyck', size='400m', recipe='paper', optimizer='', seed=0, smoke=False)
    stage, data = common.choose(SOURCES, words.source, 'source')
    arm = f'{words.source} {words.optimizer}'.strip()
    return common.pre_pretraining('baselines', arm, stage, ConfigDict(data), words)
