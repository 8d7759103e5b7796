"""Stage 1, pre-pre-training on neural cellular automata (arXiv 2603.10055): 164M tokens.

    python -m nca_jax train --config=experiments/nca_pretrain.py:size=1b6,band=50+ --workdir=runs/nca-1b6

The second stage starts from its model: experiments/language.py:parent=runs/nca-1b6. The paper doesn't publish the
held-out loss of this stage; a replay elsewhere reached 6.21 nats (a uniform guess: 9.21). Nobody ran this size with
this code.

- Control rules=fixed: one rule for all sequences.
- Control shuffle=tokens: the same tokens without dynamics.
- Control shuffle=frames: the same grids out of order.
"""

from ml_collections import ConfigDict

from experiments import common

RULES = {
    # Another bank of rules each epoch, as in the paper.
    'fresh': {'fresh_rules': True},
    # One bank for all epochs, as in the release.
    'once': {'fresh_rules': False},
    # One rule for all sequences; held-out sequences are new trajectories of it.
    'fixed': {'fresh_rules': False, 'rules_per_epoch': 1, 'held_out': 'trajectories'},
}
# The compressor's effort for each measure; the change rate has none.
LEVELS = {'gzip': 9, 'zstd': 19, 'lzma': 9, 'change_rate': 0}
# The name of an arm leaves these values out.
PLAIN = ('random', 'none', '')


def get_config(arg: str = '') -> ConfigDict:
    words = common.words(
        arg,
        # tiny, 10m, 50m, 124m, 400m, 600m or 1b6.
        size='400m',
        # Accepted rules: 20-30, 30-40, 40-50, 50+ (compressed over raw size in percent), or quantiles of all rules such
        # as q50-100. '' takes 50+ for the paper's automata and measure, and q50-100 for others.
        band='',
        # paper, or release (the published code) where it departs from the paper.
        recipe='paper',
        # adamw, adam or muon. '' takes adam, as published.
        optimizer='',
        # Size of the alphabet; the paper has 2, 10 and 15. 0 takes 10 for random rules and 2 for the other families.
        colours=0,
        # Side of the square of cells that makes one token.
        patch=2,
        # Cells of the grid, a torus.
        height=12,
        width=12,
        # Score of a rule: gzip, zstd, lzma or change_rate (the share of cells that change in an update).
        measure='gzip',
        # random networks, elementary or life (all rules of these families), or one rule: elementary:110, life:B3/S23.
        family='random',
        # fresh, once or fixed: see RULES. '' takes the recipe's.
        rules='',
        # none; or tokens or frames, which permute a sequence: controls without dynamics.
        shuffle='none',
        # Of the weights, the rules and the order of the data.
        seed=0,
        # The same code in seconds on a CPU.
        smoke=False,
    )
    release = common.is_release(words.recipe)
    apart = (words.family, words.rules, words.shuffle, words.optimizer)
    return common.experiment(
        words,
        name='nca_pretrain',
        arm=' '.join(['nca', *(word for word in apart if word not in PLAIN)]),
        stage='nca',
        data=automata(words),
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


def automata(words: ConfigDict) -> ConfigDict:
    """The recipe's automata, changed by the words."""
    colours = words.colours or (10 if words.family == 'random' else 2)
    # The paper's bands of gzip ratios say nothing about other alphabets, grids or measures.
    scored = words.family, colours, words.patch, words.height * words.width, words.measure
    as_published = scored == ('random', 10, 2, 144, 'gzip')
    data = common.automata(words.recipe, words.band or ('50+' if as_published else 'q50-100'))
    data.rule.update({'colours': colours, 'height': words.height, 'width': words.width, 'family': words.family})
    data.update({'patch': words.patch, 'shuffle': words.shuffle})
    data.complexity.update({'measure': words.measure, 'level': common.choose(LEVELS, words.measure, 'measure')})
    if words.family != 'random':
        # These families are deterministic, and their networks need 18 features.
        data.rule.update({'features': 18, 'temperature': 0.0, 'padding': 'spatial'})
        # A family of one rule can't reject it.
        if not words.band and ':' in words.family:
            data.update(common.accepted('q0-100'))
    if words.rules:
        data.update(common.choose(RULES, words.rules, 'rules'))
    return data
