"""Stage 2, language modelling from scratch or from a first stage's run (arXiv 2603.10055, section on pre-training).

    python -m nca_jax train --workdir=runs/owt-nca-1b6 \
        --config=experiments/language.py:size=1b6,corpus=openwebtext,path=DIR,tokenizer=FILE,parent=runs/nca-1b6

DIR is your copy of the published files, FILE the tokenizer.json of GPT-2. Your own text trains with
corpus=text_files,path=DIR, a dataset of TFDS with corpus=tfds:NAME,path=DIR,field=FEATURE.

Published final perplexities at 1b6, scratch against automata: openwebtext 14.66 / 13.82, openwebmath 8.11 / 7.70,
codeparrot 1.92 / 1.84. Nobody ran this size with this code.

corpus=c4 is a first stage, the paper's control with text in place of automata. The paper doesn't publish its recipe; it
takes that of nca_pretrain.py. A run that starts from it has parent_stage=text.
"""

from ml_collections import ConfigDict

from experiments import common

# Corpus: (length of the schedule, peak learning rate, warm-up, weight decay).
SCHEDULES = {
    'openwebtext': ('17234 steps', 5e-4, '10%', 1e-4),
    # The paper doesn't publish this warm-up.
    'openwebmath': ('8000 steps', 5e-4, '10%', 0.0),
    'codeparrot': ('24000 steps', 2e-4, '750 steps', 0.0),
    'python_stdlib': ('20M tokens', 1e-3, '10%', 1e-4),
    'python_docs': ('20M tokens', 1e-3, '10%', 1e-4),
    'text_files': ('20M tokens', 1e-3, '10%', 1e-4),
    'tfds': ('20M tokens', 1e-3, '10%', 1e-4),
    # A first stage: its usual run is the warm-up alone.
    'c4': ('1638.4M tokens', 1e-4, '163.84M tokens', 0.0),
}
C4_TOKENS = {'164M': '163.84M tokens', '1.6B': '1638.4M tokens'}


def get_config(arg: str = '') -> ConfigDict:
    words = common.words(
        arg,
        # tiny, 10m, 50m, 124m, 400m, 600m or 1b6.
        size='400m',
        # A key of SCHEDULES; tfds:NAME for a dataset of TFDS.
        corpus='python_stdlib',
        # The text's file, folder or glob, or the folder of TFDS; '' for python_stdlib and python_docs.
        path='',
        # The field that holds the text, in JSON lines and TFDS; '' where none is needed.
        field='',
        # A tokenizer.json; '' trains one of 4,096 tokens. The published corpora need GPT-2's.
        tokenizer='',
        # Of c4 alone: 164M, or 1.6B for the whole schedule. '' takes 164M.
        tokens='',
        # The folder of the run that the weights come from. '' starts from scratch.
        parent='',
        # nca, dyck, copy, noise, or text for a run of this file.
        parent_stage='nca',
        # all, or only_X or reinit_X with X = attn, mlp or norms: see common.transfer_plan.
        transfer='all',
        # Factor of the carried projections that add to the residual stream.
        writers=1.0,
        # The name under which reports group seeds. '' takes one made from the other words.
        arm='',
        # paper, or release (the published code) where it departs from the paper.
        recipe='paper',
        # adamw, adam or muon. '' takes the published one: adam for c4, adamw for the others.
        optimizer='',
        # Of the weights and the order of the text.
        seed=0,
        # The same code in seconds on a CPU.
        smoke=False,
    )
    if not words.parent and (words.transfer, words.writers) != ('all', 1.0):
        raise ValueError('transfer and writers say what is carried from a parent: name it by parent=FOLDER')
    optimizer, train, arm = training(words)
    if words.parent:
        arm = f'{words.parent_stage} {words.transfer} x{words.writers:g}'
    release = common.is_release(words.recipe)
    model = common.model(words.size, length=1024, dropout=0.1, tied=not release)
    model.init.table_std = 1.0 if release else 0.02
    tables = common.fresh_tables(words.recipe, words.parent_stage)
    return common.experiment(
        words,
        name='language',
        arm=words.arm or f'{arm} {words.optimizer}'.strip(),
        stage='text',
        data=common.text(words.corpus, vocab_size=4096, path=words.path, field=words.field, tokenizer=words.tokenizer),
        model=model,
        optimizer=optimizer,
        train=train,
        eval={'batch': 32, 'batches': 16},
        init_from=common.init_from(words.parent, common.transfer_plan(words.transfer, words.writers, tables)),
    )


def training(words: ConfigDict) -> tuple[ConfigDict, ConfigDict, str]:
    """Optimizer, loop and the arm's name without a parent."""
    release = common.is_release(words.recipe)
    corpus = words.corpus.partition(':')[0]
    horizon, lr, warmup, weight_decay = common.choose(SCHEDULES, corpus, 'corpus')
    is_c4 = corpus == 'c4'
    if words.tokens and not is_c4:
        raise ValueError(f'tokens = {words.tokens!r}: is of corpus=c4 alone; others have --config.train.stop')
    optimizer = common.optimizer(
        words.optimizer or ('adam' if is_c4 else 'adamw'),
        lr,
        warmup=warmup,
        horizon=horizon,
        weight_decay=weight_decay,
        clip=None if is_c4 else 1.0,
        clip_on='sum' if release else 'mean',
    )
    if not is_c4:
        # 32 micro-batches of 16.
        return optimizer, common.loop(batch=512, accumulate=32, stop=horizon), 'scratch'
    tokens = words.tokens or '164M'
    stop = common.choose(C4_TOKENS, tokens, 'tokens')
    train = common.loop(batch=32 if release else 16, stop=stop, keep=('81.92M tokens', '163.84M tokens'))
    return optimizer, train, f'C4 {tokens}'
