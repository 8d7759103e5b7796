"""Stage 1, pre-pre-training on neural cellular automata (arXiv 2603.10055): 164M tokens.

    python -m nca_jax train --config=experiments/nca_pretrain.py:size=1b6,band=50+ --workdir=runs/nca-1b6

The run stops at the end of the warm-up of a schedule of 1.64B tokens, as the paper's does: after 10,000 updates of 16
sequences (`recipe=paper`) or 5,000 of 32 (`recipe=release`). Its model goes into the second stage:
experiments/language.py:parent=runs/nca-1b6. The paper's own held-out loss wasn't published; a replay elsewhere reached
6.21 nats (a uniform guess: 9.21). The checkpoints at 82M and 164M tokens are kept for good.

Other automata: `colours=2` or `15` (the paper's other alphabets), `patch`, `height`, `width`, `measure`;
`family=elementary`, `life`, `elementary:110`, `life:B3/S23`. Controls: `rules=fixed` has one rule for all sequences,
`shuffle=tokens` the same tokens without dynamics, `shuffle=frames` the same grids out of order.
"""

from ml_collections import ConfigDict

from experiments import common

# Fresh rules every epoch (paper), one set for all epochs (release), or one rule for all sequences.
RULES = {
    'fresh': {'fresh_rules': True},
    'once': {'fresh_rules': False},
    'fixed': {'fresh_rules': False, 'rules_per_epoch': 1, 'held_out': 'trajectories'},
}
LEVELS = {'gzip': 9, 'zstd': 19, 'lzma': 9, 'change_rate': 0}
PLAIN = ('random', 'none', '')  # words that an arm's name leaves out


def get_config(arg: str = '') -> ConfigDict:
    """Words: size, band (20-30, 30-40, 40-50, 50+, or quantiles like q50-100; without one 50+ for the paper's 144
    cells of ten colours in 2 x 2 patches scored by gzip, and the upper half for all others), recipe (paper or release,
    where they differ), optimizer (adam, adamw or muon; without one the published, which is adam), colours, patch,
    height, width, measure, family, rules (fresh, once, fixed), shuffle, seed, smoke."""
    words = common.words(
        arg,
        size='400m',
        band='',
        recipe='paper',
        optimizer='',
        colours=0,
        patch=2,
        height=12,
        width=12,
        measure='gzip',
        family='random',
        rules='',
        shuffle='none',
        seed=0,
        smoke=False,
    )
    apart = (words.family, words.rules, words.shuffle, words.optimizer)
    arm = ' '.join(['nca', *(word for word in apart if word not in PLAIN)])
    return common.pre_pretraining('nca_pretrain', arm, 'nca', automata(words), words)


def automata(words: ConfigDict) -> ConfigDict:
    """The recipe's automata with what the words change."""
    colours = words.colours or (10 if words.family == 'random' else 2)
    scored = words.family, colours, words.patch, words.height * words.width, words.measure
    as_published = scored == ('random', 10, 2, 144, 'gzip')
    data = common.automata(words.recipe, words.band or ('50+' if as_published else 'q50-100'))
    data.rule.update({'colours': colours, 'height': words.height, 'width': words.width, 'family': words.family})
    data.update({'patch': words.patch, 'shuffle': words.shuffle})
    data.complexity.update({'measure': words.measure, 'level': common.choose(LEVELS, words.measure, 'measure')})
    if words.family != 'random':  # without noise; their networks need 18 features
        data.rule.update({'features': 18, 'temperature': 0.0, 'padding': 'spatial'})
        if not words.band and ':' in words.family:
            data.update(common.accepted('q0-100'))
    if words.rules:
        data.update(common.choose(RULES, words.rules, 'rules'))
    return data
