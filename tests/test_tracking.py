"""Weights & Biases for real, offline: what its files hold, and that nothing that fails there stops a run."""

import json
import pathlib
import struct
import sys

import pytest

from nca_jax.errors import UserError
from nca_jax.train import metrics
from nca_jax.train.metrics import Wandb, check_installed

ABOUT = {
    'identity': '0123456789abcdef' * 4,
    'name': 'quickstart',
    'arm': 'nca',
    'stage': 'text',
    'seed': 3,
    'config': {'seed': 3, 'optimizer': {'lr': 0.5}},
    'parameters': 7,
}
BLOCK, HEADER = 32768, 7


@pytest.fixture(autouse=True)
def nobody_logged_in(tmp_path, monkeypatch):
    for name in ('WANDB_MODE', 'WANDB_API_KEY', 'WANDB_PROJECT'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    # The package's own process needs seconds, which a busy machine makes many; what it writes is tested, not when.
    monkeypatch.setattr(metrics, 'START_SECONDS', 200.0)
    monkeypatch.setattr(metrics, 'FINISH_SECONDS', 200.0)


def track(folder: pathlib.Path, numbers: dict[int, float], done: bool) -> None:
    """One start of a run that logs a loss at some steps."""
    tracker = Wandb(ABOUT, folder)
    for step, loss in numbers.items():
        tracker.write({'train/loss': loss}, step)
    tracker.close(done)


def records(file: pathlib.Path) -> list:
    """The protocol buffers of a .wandb file: LevelDB's log format after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts, found = file.read_bytes(), HEADER, [], []
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack('<IHB', data[at : at + HEADER])
        parts.append(data[at + HEADER : at + HEADER + length])
        at += HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(Record.FromString(b''.join(parts)))
            parts = []
    return found


def history(found: list) -> dict[int, float]:
    rows = []
    for record in found:
        if record.WhichOneof('record_type') == 'history':
            items = record.history.item
            rows.append({(item.key or '/'.join(item.nested_key)): json.loads(item.value_json) for item in items})
    return {row['_step']: row['train/loss'] for row in rows}


def test_a_run_and_its_resumption_are_one_run(tmp_path, capsys):
    track(tmp_path, {1: 4.0, 2: 3.0}, done=False)
    track(tmp_path, {3: 2.0, 4: 1.0}, done=True)
    said = capsys.readouterr().out.splitlines()
    folders = [pathlib.Path(line.removeprefix('Weights & Biases: ')) for line in said]
    assert len(folders) == 2
    assert [folder.parent for folder in folders] == [tmp_path / 'wandb'] * 2
    starts = [records(folder / 'run-0123456789abcdef.wandb') for folder in folders]
    assert [history(found) for found in starts] == [{1: 4.0, 2: 3.0}, {3: 2.0, 4: 1.0}]
    for found, code in zip(starts, (1, 0), strict=True):
        (run,) = [record.run for record in found if record.WhichOneof('record_type') == 'run']
        assert (run.run_id, run.project, run.display_name) == ('0123456789abcdef', 'nca_jax', 'quickstart/nca/3')
        kept = {update.key: json.loads(update.value_json) for update in run.config.update}
        assert (kept['optimizer'], kept['parameters']) == ({'lr': 0.5}, 7)
        assert [record.exit.exit_code for record in found if record.WhichOneof('record_type') == 'exit'] == [code]


def test_what_fails_is_a_warning(tmp_path, monkeypatch, capsys):
    tracker = Wandb(ABOUT, tmp_path)
    tracker._run.finish()  # as if its process had died
    for step in (1, 2):
        tracker.write({'train/loss': 1.0}, step)
    tracker.close(done=True)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[1].startswith('warning: Weights & Biases failed to log and is left out from here: ')
    monkeypatch.setenv('WANDB_MODE', 'online')  # without a key
    monkeypatch.setenv('WANDB_BASE_URL', 'http://127.0.0.1:9')
    track(tmp_path, {1: 1.0}, done=True)
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith('warning: Weights & Biases failed to start and is left out from here: ')
    assert '\n' not in warning


def test_it_is_asked_for_before_it_is_imported(monkeypatch):
    check_installed('wandb')
    monkeypatch.setitem(sys.modules, 'wandb', None)  # as if it weren't installed
    check_installed('')
    with pytest.raises(UserError, match=r"config.track = 'wandb': the package isn't installed; pip install wandb"):
        check_installed('wandb')
