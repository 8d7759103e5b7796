"""The reader of PyTorch's files: what it reads, and that no file makes it run, take or hang on anything."""

import os
import pathlib
import random
import re
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from nca_jax.errors import UserError
from nca_jax.hf import torch_zip

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'release_checkpoint.pt'
NUMBERS = np.arange(6, dtype='<f4')

# An assembler for pickles, so that files can say what no pickler would.
DICT, EMPTY, STOP, REDUCE, BUILD = b'}', b')', b'.', b'R', b'b'


def name(module: str, attribute: str) -> bytes:
    return f'c{module}\n{attribute}\n'.encode()


def text(value: str) -> bytes:
    return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b'\x8a\x08' + value.to_bytes(8, 'little', signed=True)


def group(*items: bytes) -> bytes:
    return b'(' + b''.join(items) + b't'


def numbers(*values: int) -> bytes:
    return group(*map(number, values))


def storage(kind: str = 'FloatStorage', key: str = '0', size: int = 6) -> bytes:
    return group(text('storage'), name('torch', kind), text(key), text('cpu'), number(size)) + b'Q'


ZERO, SHAPE, STRIDES, STORAGE = number(0), numbers(2, 3), numbers(3, 1), storage()


def tensor(offset=ZERO, shape=SHAPE, strides=STRIDES, of=STORAGE) -> bytes:
    hooks = name('collections', 'OrderedDict') + EMPTY + REDUCE
    arguments = group(of, offset, shape, strides, b'\x89', hooks)
    return name('torch._utils', '_rebuild_tensor_v2') + arguments + REDUCE


def model(value: bytes) -> bytes:
    return b'\x80\x02' + DICT + text('x') + value + b's' + STOP


def write(folder: pathlib.Path, program: bytes, members=None, compression=zipfile.ZIP_STORED) -> pathlib.Path:
    path = folder / 'file.pt'
    members = {'data.pkl': program, 'byteorder': b'little', 'data/0': NUMBERS.tobytes()} | (members or {})
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for member, content in members.items():
            archive.writestr(f'file/{member}', content)
    return path


def refusal(path: pathlib.Path) -> str:
    with pytest.raises(UserError) as refused:
        torch_zip.load(path)['x'].read()
    assert '\n' not in str(refused.value)
    return str(refused.value)


def test_a_checkpoint_that_pytorch_wrote():
    """release_checkpoint.py says what is in it: one update of Adam, in its first step, at 1e-3."""
    found = torch_zip.load(GOLDEN)
    assert list(found) == ['model', 'optimizer', 'scheduler', 'epoch', 'val_loss']
    assert (found['epoch'], found['val_loss']) == (3, 6.214)
    assert found['scheduler']['last_epoch'] == 1
    weight = found['model']['layers.1.mlp.down_proj.weight'].read()
    assert (weight.shape, weight.dtype, weight.flags.writeable) == ((8, 12), np.float32, False)
    names = list(found['model'])
    moments = found['optimizer']['state'][names.index('layers.1.mlp.down_proj.weight')]
    assert moments['step'].read() == 1.0
    gradient = moments['exp_avg'].read() / np.float32(0.1)
    np.testing.assert_allclose(gradient, 2 * (weight + 1e-3 * np.sign(gradient)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (tensor(), NUMBERS.reshape(2, 3)),
        (tensor(number(1), numbers(2, 2), numbers(1, 2)), [[1, 3], [2, 4]]),
        (tensor(number(5), group(), group()), 5),
        (tensor(number(0), numbers(0, 3), numbers(3, 1)), np.zeros((0, 3), np.float32)),
        (tensor(of=storage('HalfStorage', size=12), shape=numbers(12), strides=numbers(1)), NUMBERS.view(np.float16)),
        (
            tensor(of=storage('BFloat16Storage', size=12), shape=numbers(12), strides=numbers(1)),
            NUMBERS.view(ml_dtypes.bfloat16),
        ),
    ],
)
def test_tensors(tmp_path, value, expected):
    found = torch_zip.load(write(tmp_path, model(value)))['x'].read()
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.asarray(expected).dtype or not isinstance(expected, np.ndarray)


OWNED = 'owned-by-a-checkpoint'
CALL = group(text(f'touch {OWNED}')) + REDUCE
HOSTILE = {
    'os.system': (name('os', 'system') + CALL, 'os system'),
    'posix.system': (name('posix', 'system') + CALL, 'posix system'),
    'eval': (name('builtins', 'eval') + group(text(f"open('{OWNED}', 'w')")) + REDUCE, 'builtins eval'),
    'getattr': (name('builtins', 'getattr') + group(text(''), text('format')) + REDUCE, 'builtins getattr'),
    'a nested pickle': (name('pickle', 'loads') + group(text('cos\nsystem\n.')) + REDUCE, 'pickle loads'),
    'torch.load': (name('torch', 'load') + group(text('other.pt')) + REDUCE, 'torch load'),
    'TorchScript': (name('__torch__.model', 'Net') + EMPTY + b'\x81', '__torch__'),
    'a name below a name': (name('collections', 'OrderedDict.__reduce__') + CALL, 'OrderedDict.__reduce__'),
    'a dotted module': (name('torch._utils _rebuild_tensor_v2', 'os') + CALL, '_rebuild_tensor_v2 os'),
    'a name from the stack': (text('os') + text('system') + b'\x93' + CALL, 'STACK_GLOBAL'),
    'a storage called': (
        name('torch', 'FloatStorage') + group(number(1)) + REDUCE,
        'calls torch FloatStorage in an odd way',
    ),
    'a string called': (text('os.system') + CALL, 'calls str'),
    'a dict called': (DICT + CALL, 'calls dict'),
    'arguments for a dict': (name('collections', 'OrderedDict') + CALL, 'odd way'),
    'arguments that are a list': (name('torch._utils', '_rebuild_tensor_v2') + b']' + REDUCE, 'odd way'),
    'too few arguments': (name('torch._utils', '_rebuild_tensor_v2') + group(storage()) + REDUCE, 'odd way'),
    'state for a function': (
        name('torch._utils', '_rebuild_tensor_v2') + group(b'N', DICT + text('__code__') + b'Ns') + BUILD,
        'a Global as a dict',
    ),
    'state for a class': (name('collections', 'OrderedDict') + DICT + BUILD, 'a Global as a dict'),
    'state for a tensor': (tensor() + DICT + BUILD, 'a Tensor as a dict'),
    'an item of a tensor': (tensor() + text('a') + text('b') + b's', 'a Tensor as a dict'),
    'NEWOBJ': (name('collections', 'OrderedDict') + EMPTY + b'\x81', 'NEWOBJ'),
    'NEWOBJ_EX': (name('collections', 'OrderedDict') + EMPTY + DICT + b'\x92', 'NEWOBJ_EX'),
    'INST': (b'(' + text('true') + b'ios\nsystem\n', 'INST'),
    'OBJ': (b'(' + name('collections', 'OrderedDict') + b'o', 'OBJ'),
    'an extension': (b'\x82\x01', 'EXT1'),
    'an id in a line': (b'Psomething\n', 'PERSID'),
    'bytes': (b'C\x01a', 'SHORT_BINBYTES'),
    'a negative offset': (tensor(number(-1)), 'odd offset'),
    'a negative size': (tensor(shape=numbers(-2, -3)), 'odd offset'),
    'a negative stride': (tensor(number(5), strides=numbers(-3, -1)), 'odd offset'),
    'an offset beyond': (tensor(number(1)), 'larger than its storage of 6'),
    'a shape beyond': (tensor(shape=numbers(3, 3)), 'larger than its storage of 6'),
    'a stride beyond': (tensor(strides=numbers(2**40, 1)), 'larger than its storage of 6'),
    'a huge tensor of one number': (tensor(shape=numbers(2**30, 2**30), strides=numbers(0, 0)), 'larger than its'),
    'another number of strides': (tensor(strides=numbers(1)), 'odd offset'),
    'too many axes': (tensor(shape=numbers(*[1] * 9), strides=numbers(*[1] * 9)), 'odd offset'),
    'a bool for an offset': (tensor(b'\x88'), 'odd offset'),
    'a text for a shape': (tensor(shape=text('23')), 'odd way'),
    'a tensor without a storage': (tensor(of=text('os')), 'odd way'),
    'a tensor of a tensor': (tensor(of=tensor()), 'odd way'),
    'a storage of another size': (tensor(of=storage(size=7)), '24 bytes, not those of 7 numbers'),
    'a storage of negative size': (tensor(of=storage(size=-6)), 'not those of -6'),
    'a storage that is not there': (tensor(of=storage(key='1')), 'storage that it lacks'),
    'a storage elsewhere': (tensor(of=storage(key='../data.pkl')), 'storage that it lacks'),
    'a storage of a type not known': (tensor(of=storage('QInt8Storage')), 'QInt8Storage'),
    'an id that is no storage': (text('0') + b'Q', 'storage that it lacks'),
    'a memo that was never put': (b'h\x07', 'not a checkpoint'),
    'no mark': (b't', 'not a checkpoint'),
    'an odd number of items': (DICT + b'(' + text('a') + b'u', 'not a checkpoint'),
    'no known opcode': (b'\xff', 'not a checkpoint'),
    'a tensor for a key': (DICT + tensor() + text('a') + b's', 'Tensor as a key'),
}
NESTED = EMPTY + b'q\x00' + b'h\x00\x86q\x00' * 200  # 2**200 empty tuples, if anybody counts them
HOSTILE |= {
    'tuples without end as a key': (DICT + NESTED + text('a') + b's', 'tuple as a key'),
    'tuples without end as an offset': (tensor(NESTED), 'odd offset'),
    'tuples without end as a shape': (tensor(shape=NESTED), 'odd offset'),
    'tuples without end as a name': (NESTED + text('a') + b'\x93', 'STACK_GLOBAL'),
    'tuples without end as a key of a storage': (
        group(text('storage'), name('torch', 'FloatStorage'), NESTED, text('cpu'), number(6)) + b'Q',
        'storage that it lacks',
    ),
}


@pytest.mark.parametrize('what', HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    value, said = HOSTILE[what]
    assert re.search(said, refusal(write(tmp_path, model(value))))
    assert not os.path.exists(OWNED)


@pytest.mark.parametrize(
    ('members', 'said'),
    [
        ({'byteorder': b'big'}, 'byte order'),
        ({'data/0': b'short'}, '5 bytes, not those of 6 numbers'),
        ({'data.pkl': b''}, 'not a checkpoint'),
        ({'data.pkl': b'\x85.'}, 'not a checkpoint'),
        ({'data.pkl': text('x') * 2 + STOP}, 'damaged'),
        ({'data.pkl': model(tensor())[:-9]}, 'not a checkpoint'),
    ],
)
def test_odd_members_are_refused(tmp_path, members, said):
    assert said in refusal(write(tmp_path, model(tensor()), members))


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path):
    path = write(tmp_path, model(tensor()), {'data/1': bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 16
    assert 'compressed' in refusal(path)


def test_files_of_one_name_and_other_roots_are_refused(tmp_path):
    path = write(tmp_path, model(tensor()))
    with zipfile.ZipFile(path, 'a') as archive, pytest.warns(UserWarning, match='Duplicate'):
        archive.writestr('file/data/0', bytes(24))
    assert "two files named 'data/0'" in refusal(path)
    with zipfile.ZipFile(write(tmp_path, model(tensor())), 'a') as archive:
        archive.writestr('other/data/0', b'')
    assert "two files named 'data/0'" in refusal(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('file/data/0', b'')
    assert 'has no data.pkl' in refusal(path)


def test_a_pickle_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_zip, 'MAX_PICKLE', 100)
    assert 'over 100 bytes' in refusal(write(tmp_path, model(tensor())))


@pytest.mark.parametrize(
    'content',
    [b'', b'no zip', b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.', bytes(257) + b'ustar  \0' + bytes(247)],
    ids=['empty', 'text', 'before version 1.6', 'tar'],
)
def test_what_is_no_zip_file_is_refused(tmp_path, content):
    (tmp_path / 'file.pt').write_bytes(content)
    assert 'PyTorch 1.6' in refusal(tmp_path / 'file.pt')


def test_what_is_no_file_is_refused(tmp_path):
    assert 'No such file' in refusal(tmp_path / 'none.pt')
    assert 'directory' in refusal(tmp_path)


def test_every_truncation_is_refused(tmp_path):
    whole = write(tmp_path, model(tensor())).read_bytes()
    for length in range(len(whole)):
        (tmp_path / 'file.pt').write_bytes(whole[:length])
        refusal(tmp_path / 'file.pt')


def test_a_flipped_bit_in_the_numbers_is_found(tmp_path):
    path = write(tmp_path, model(tensor()))
    damaged = path.read_bytes().replace(NUMBERS.tobytes(), np.nextafter(NUMBERS, np.float32(9)).tobytes())
    path.write_bytes(damaged)
    assert 'CRC-32' in refusal(path)


@pytest.mark.parametrize('what', ['pickle', 'zip'])
def test_random_damage_never_does_anything_else(tmp_path, what):
    """Either the file is refused in one line or it is read; it raises nothing else, and every array stays small."""
    program, rng = model(tensor()), random.Random(0)
    whole = write(tmp_path, program).read_bytes()
    read, said = 0, set()
    for _ in range(400):
        content = bytearray(program if what == 'pickle' else whole)
        for _ in range(rng.randint(1, 2)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if what == 'pickle':
            path = write(tmp_path, bytes(content))
        else:
            path = tmp_path / 'file.pt'
            path.write_bytes(content)
        try:
            found = torch_zip.load(path)
            if isinstance(found, dict) and isinstance(found.get('x'), torch_zip.Tensor):
                assert found['x'].read().size <= NUMBERS.nbytes
                read += 1
        except UserError as error:
            said.add(str(error).removeprefix(str(path)))
    assert read > 0
    assert len(said) > 20
    assert not any('\n' in line for line in said)
