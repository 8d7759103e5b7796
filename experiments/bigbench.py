"""BigBench-Lite: tune on eleven tasks of BIG-bench, then count how often samples are right (paper, section 3).

    python -m nca_jax train --config=experiments/bigbench.py:size=1b6,path=DIR,parent=runs/owt --workdir=runs/bbl
    python -m nca_jax train --config=experiments/bigbench.py:smoke,tokenizer=FILE --workdir=runs/try  # seconds on a CPU

DIR holds BIG-bench's task folders, each with a task.json. Without it a generator makes six small tasks in that format,
five of them multiple choice. An answer is right if it is the row's option of the highest score, or its target where it
has no options. Scores are normalised by chance with each row's number of choices; chance pass@k stands beside them.
Nobody ran this size with this code; README.md beside this file has the paper's numbers.
"""

from ml_collections import ConfigDict

from experiments import common, tasks


def get_config(arg: str = '') -> ConfigDict:
    words = common.words(
        arg,
        # BIG-bench's folder. '' makes small tasks.
        path='',
        # All other words are explained there.
        **tasks.WORDS,
    )
    if words.path:
        # At most 350 training rows a task.
        problems = tasks.problems('bigbench', words.path, train_rows=350, valid_rows=16)
    else:
        problems = tasks.problems('choices', size=(500, 0), valid_rows=16)
    benchmark = tasks.benchmark(
        problems, words.protocol, shots=2, max_tokens=35, limit=350, samples=64, temperature=0.4, top_p=0.95
    )
    # 54 updates are one epoch.
    return tasks.tuning(words, benchmark, length=1024, lr=5e-6, batch=64, stop='54 steps', shots=(0, 3))
