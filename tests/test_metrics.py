"""What a run's records become: lines of a file, scalars for TensorBoard and a tracker, and words for the terminal."""

import json
import pathlib
import struct

import pytest
from tensorboardX.proto import event_pb2

from nca_jax.train.metrics import MetricWriter, describe

TRAIN = {'kind': 'train', 'step': 2, 'tokens': 128, 'loss': 3.25, 'lr': 1e-3, 'tokens_per_s': 12345.6}
EVAL = {'kind': 'eval', 'evaluator': 'perplexity', 'step': 2, 'tokens': 128, 'loss': 3.5, 'scored_tokens': 7}
DONE = {'kind': 'done', 'step': 2, 'tokens': 128, 'seconds': {'train': 1.0}}


class Kept:
    """A tracker that keeps what it gets."""

    def __init__(self):
        self.scalars, self.done = [], None

    def write(self, scalars: dict, step: int) -> None:
        self.scalars.append((step, scalars))

    def close(self, done: bool) -> None:
        self.done = done


def write(folder: pathlib.Path, *records: dict, step: int = 0, tracker=None) -> list[dict]:
    """What the file holds once the records are written by a run that starts at `step`."""
    writer = MetricWriter(folder, step, 4, 'run', tracker)
    for record in records:
        writer.write(record)
    writer.close()
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def board(folder: pathlib.Path) -> list[tuple[int, str, float]]:
    """Step, name and value of every scalar in TensorBoard's files."""
    found = []
    for file in folder.glob('tensorboard/events.*'):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack('<Q', data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[12 + length + 4 :]
    return found


def test_a_record_goes_everywhere(tmp_path, capsys):
    tracker = Kept()
    rows = write(tmp_path, TRAIN, EVAL, DONE, tracker=tracker)
    assert [{name: row[name] for name in row if name != 'time'} for row in rows] == [TRAIN, EVAL, DONE]
    trained = {'train/loss': 3.25, 'train/lr': 1e-3, 'train/tokens_per_s': 12345.6}
    assert tracker.scalars == [(2, trained), (2, {'perplexity/loss': 3.5})]
    assert tracker.done is True
    shown = board(tmp_path)
    assert {(step, name) for step, name, _ in shown} == {(2, name) for name in (*trained, 'perplexity/loss')}
    assert {name: value for _, name, value in shown}['train/lr'] == pytest.approx(1e-3)
    assert 'run  step 2/4  train: loss 3.2500, 12,346 tokens/s\n' in capsys.readouterr().out


def test_a_run_that_stopped_early_is_not_done(tmp_path):
    tracker = Kept()
    write(tmp_path, TRAIN, tracker=tracker)
    assert tracker.done is False


def test_records_past_the_checkpoint_are_cut_off(tmp_path):
    write(tmp_path, TRAIN, TRAIN | {'step': 4}, DONE | {'step': 4})
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"kind": "tra')
    assert [row['step'] for row in write(tmp_path, TRAIN | {'step': 3}, step=2)] == [2, 3]


@pytest.mark.parametrize(
    ('record', 'words'),
    [
        (TRAIN, 'train: loss 3.2500, 12,346 tokens/s'),
        (TRAIN | {'mfu': 0.4123}, 'train: loss 3.2500, 12,346 tokens/s, MFU 41.2%'),
        (EVAL | {'accuracy': 0.5}, 'perplexity: loss 3.5000, accuracy 0.5000'),
    ],
)
def test_describe(record, words):
    assert describe(record) == words
