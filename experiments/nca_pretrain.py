"""Stage 1, pre-pre-training on neural cellular automata (arXiv 2603.10055): 164M tokens.

    python -m nca_jax.main --config=experiments/nca_pretrain.py:size=1b6,band=50+ --workdir=runs/nca-1b6

The run stops at the end of the warm-up of a schedule of 1.64B tokens, as the paper's does: after 10,000 updates of 16
sequences (`recipe=paper`) or 5,000 of 32 (`recipe=release`). Its model goes into the second stage:
experiments/language.py:parent=runs/nca-1b6. The paper's own held-out loss wasn't published; a replay elsewhere reached
6.21 nats (a uniform guess: 9.21). The checkpoints at 82M and 164M tokens are kept for good.
"""

from ml_collections import ConfigDict

from experiments import common


def get_config(arg: str = '') -> ConfigDict:
    """Words: size, band (20-30, 30-40, 40-50, 50+), recipe (paper or release, where they differ), seed, smoke."""
    words = common.words(arg, size='400m', band='50+', recipe='paper', seed=0, smoke=False)
    release = words.recipe == 'release'
    model = common.model(words.size, length=1024, dropout=0.1)
    model.update({'tied': not release, 'head_bias': release})
    optimizer, train = common.first_stage(words.recipe)
    config = common.experiment(
        name='nca_pretrain',
        arm='nca',
        stage='nca',
        seed=words.seed,
        smoke=words.smoke,
        data=common.automata(words.recipe, words.band),
        model=model,
        optimizer=optimizer,
        train=train,
        eval={'batch': 32, 'batches': 16},
    )
    if words.smoke:
        common.shrink(config)
    return config
