"""GSM8K: tune a language model on worked solutions, then count how many problems its samples solve (paper, section 3).

    python -m nca_jax train --config=experiments/gsm8k.py:size=1b6,path=DIR,parent=runs/owm --workdir=runs/gsm8k
    python -m nca_jax train --config=experiments/gsm8k.py:size=1b6,path=DIR,parent=runs/owm,evaluate --workdir=runs/is
    python -m nca_jax train --config=experiments/gsm8k.py:smoke,tokenizer=FILE --workdir=runs/try   # seconds on a CPU

DIR has the published train.jsonl and test.jsonl. Without it gsm_symbolic of reasoning-gym stands in, which needs no
download. The loss is on the target alone (recipe=release: on all answers). Nobody ran this size with this code;
README.md beside this file has the paper's numbers.
"""

from ml_collections import ConfigDict

from experiments import common, tasks


def get_config(arg: str = '') -> ConfigDict:
    words = common.words(
        arg,
        # GSM8K's folder. '' takes gsm_symbolic.
        path='',
        # All other words are explained there.
        **tasks.WORDS,
    )
    if words.path:
        problems = tasks.problems('gsm8k', words.path, valid_rows=256)
    else:
        # As many as GSM8K has.
        problems = tasks.problems('gsm_symbolic', size=(7473, 1319), valid_rows=256)
    # Where three worked examples don't fit, fewer stand there, and a metric counts these problems.
    benchmark = tasks.benchmark(
        problems, words.protocol, shots=3, max_tokens=250, samples=32, temperature=0.6, top_p=1.0
    )
    # 140 updates are 10 epochs. Five worked examples stand before a training problem, or as many as fit.
    return tasks.tuning(words, benchmark, length=1024, lr=1e-5, batch=512, stop='140 steps', shots=(5, 5))
