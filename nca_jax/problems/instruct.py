"""Problems as a stream of Batches: one problem a row behind worked examples, and loss on the answers."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from nca_jax.batch import Batch
from nca_jax.data import tokenizer as bpe
from nca_jax.data.streams import make_read_stream, shuffled
from nca_jax.errors import UserError, check
from nca_jax.problems.problem import Problems, Tokens
from nca_jax.problems.sets import ProblemsConfig


@dataclasses.dataclass(frozen=True)
class InstructConfig:
    """Which problems, and how they become rows."""

    problems: ProblemsConfig
    # A tokenizer.json, '' for the parent's.
    tokenizer: str
    # The least and the most worked examples before a problem (paper: 5 and 5 for GSM8K, 0 and 3 for BIG-bench).
    shots: tuple[int, int]
    # 'target', or 'all_answers' for the shots' too, as the release does.
    loss_on: str

    def __post_init__(self):
        least, most = self.shots
        check(0 <= least <= most, 'shots', self.shots, 'must be the least and the most, from 0 on')
        check(self.loss_on in ('target', 'all_answers'), 'loss_on', self.loss_on, "must be 'target' or 'all_answers'")


def fitting(prepared: Problems, split: str, length: int) -> np.ndarray:
    """Numbers of the problems that fit into a row of length + 1 tokens without any shot."""
    sizes = [tokens.count for tokens in prepared.tokens[split]]
    return np.flatnonzero(np.asarray(sizes, np.int64) <= length + 1)


def describe(prepared: Problems, length: int) -> str:
    """One line: counts of problems by split, and of those left out and why."""
    counts = {split: len(problems) for split, problems in prepared.splits.items()}
    splits = ', '.join(f'{count} {split}' for split, count in counts.items())
    long = ' and '.join(f'{counts[s] - len(fitting(prepared, s, length))} {s}' for s in ('train', 'valid'))
    return f'{splits} problems; left out: {prepared.repeated} repeated, {long} longer than {length}'


def make_stream(
    config: InstructConfig,
    prepared: Problems,
    seed: int,
    split: str,
    batch: int,
    length: int,
    sharding: jax.sharding.NamedSharding,
) -> Callable[[int], Batch]:
    """`stream(step)` -> the Batch (B, L) of that step: each problem of the split once an epoch, shuffled anew.

    Row r of step k has the number k * B + r in the endless sequence of epochs, whatever the devices and hosts.
    Raises UserError if no problem fits or a task has no more training problems than shots.
    """
    # A problem that doesn't fit alone is left out: its target is never cut.
    chosen = fitting(prepared, split, length)
    total, end = len(chosen), bpe.end_of_text(prepared.tokenizer)
    if not total:
        raise UserError(f'{config.problems.task}: no {split} problem fits into {length} tokens')
    prepared.check_shots(split, config.shots[1], 'config.data.shots')

    def row_of(number: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, place = shuffled(number, total, f'{seed}/instruct/{split}')
        problem = chosen[place]
        own = prepared.tokens[split][problem]
        # The name seeds the draw and holds the epoch: a problem has other shots each time. The earliest shots are
        # dropped where the row, of inputs and one more target, would be too long.
        name, room = f'{seed}/shots/{split}/{epoch}/{problem}', length + 1 - own.count
        shots, _ = prepared.draw_shots(name, split, problem, config.shots, room)
        return assemble(own, shots, length, end, config.loss_on)

    return make_read_stream(row_of, batch, length, sharding)


def assemble(
    own: Tokens, shots: Sequence[Tokens], length: int, end: int, loss_on: str
) -> tuple[np.ndarray, np.ndarray]:
    """(L+1,) int32 tokens, padded with `end`, and (L+1,) float32 weights of each token as a target."""
    # Prompts and padding weigh nothing; the release (all_answers) weighs the shots' targets like the problem's own.
    tokens_L1 = np.full(length + 1, end, np.int32)
    weights_L1 = np.zeros(length + 1, np.float32)
    at = 0
    for example in (*shots, own):
        start = at + len(example.prompt)
        stop = start + len(example.target)
        # The target ends with the end of text, which is learnt too: that is how an answer ends.
        tokens_L1[at:start], tokens_L1[start:stop] = example
        weights_L1[start:stop] = example is own or loss_on == 'all_answers'
        at = stop
    return tokens_L1, weights_L1
