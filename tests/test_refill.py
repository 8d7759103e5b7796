"""How rows are dealt, and the automaton of stop strings, without a model."""

import itertools

import numpy as np
import pytest

from nca_jax.decode.decoder import Prompt, Schedule
from nca_jax.decode.sampling import cut, make_stops


def play(prompts: list[Prompt], rows: int, share: int) -> tuple[dict[tuple[int, int], int], int]:
    """Runs a schedule whose answers end at their limits: their lengths, and the steps it took, a token each."""
    schedule, found, steps = Schedule(prompts, rows, share), {}, 0
    while True:
        places = list(schedule.fill())
        assert len({group for group, _ in places}) == len(places)
        state = schedule.rows
        if not state.live_B.any():
            return found, steps
        for group, live in enumerate(state.live_B.reshape(-1, share)):
            numbers = set(state.number_B.reshape(-1, share)[group][live])
            assert len(numbers) <= 1  # a group's rows share a prompt
        written_B = state.written_B + state.live_B
        after = state._replace(written_B=written_B, live_B=state.live_B & (written_B < state.limit_B))
        tokens_Bx1 = np.where(state.live_B, 7, -1)[:, None]
        for answer in schedule.collect(tokens_Bx1, after):
            assert (answer.prompt, answer.sample) not in found
            found[answer.prompt, answer.sample] = len(answer.tokens)
        steps += 1


@pytest.mark.parametrize(('rows', 'share'), [(1, 1), (8, 1), (8, 2), (8, 8), (64, 4)])
def test_every_answer_comes_once_and_whole(rows, share):
    draw = np.random.default_rng(1)
    prompts = [
        Prompt(np.arange(1 + n), n, range(n % 5, 9), draw.integers(1, 20, 9 - n % 5).tolist()) for n in range(11)
    ]
    found, _ = play(prompts, rows, share)
    expected = {(n, s): limit for n, p in enumerate(prompts) for s, limit in zip(p.samples, p.limits, strict=True)}
    assert found == expected


def test_a_batch_does_not_wait_for_its_longest_row():
    draw = np.random.default_rng(2)
    prompts = [Prompt(np.arange(3), n, range(64), draw.integers(8, 129, 64).tolist()) for n in range(16)]
    total = sum(sum(prompt.limits) for prompt in prompts)
    _, steps = play(prompts, 64, 8)
    limits = [limit for prompt in prompts for limit in prompt.limits]
    static = sum(max(limits[start : start + 64]) for start in range(0, len(limits), 64))
    assert total / (64 * steps) > 0.85
    assert static / steps > 1.6


def test_stop_strings_are_found_across_tokens_and_within_them():
    pieces = [b'', b'a', b'ab', b'b', b'ba', b'c', b'abcab', b'\n', b'\ndef ', 'é'.encode()[:1], 'é'.encode()[1:]]
    strings = ['bab', '\ndef ', 'ca', 'é']
    next_SxV = make_stops([0], strings, pieces)
    assert (next_SxV[:, 0] == len(next_SxV) - 1).all()
    for length in range(1, 4):
        for tokens in itertools.product(range(1, len(pieces)), repeat=length):
            state, ended = 0, None
            for count, token in enumerate(tokens, 1):
                state = next_SxV[state, token]
                if state == len(next_SxV) - 1 and ended is None:
                    ended = count
            texts = [b''.join(pieces[token] for token in tokens[:count]) for count in range(1, length + 1)]
            holds = [any(string.encode() in text for string in strings) for text in texts]
            assert ended == (holds.index(True) + 1 if any(holds) else None)


def test_cut_is_before_the_first_of_them():
    assert cut('x = 1\nprint(x)\ndef f', ['\ndef ', '\nprint(']) == 'x = 1'
    assert cut('x = 1', ['\ndef ']) == 'x = 1'
