"""Reads checkpoints of PyTorch without PyTorch, and without running anything that a file says.

Since version 1.6 `torch.save` writes a zip file that isn't compressed: `data.pkl`, a pickle that says how to build the
objects, and the raw bytes of every storage. Unpickling may call whatever the file names. So a machine of a few opcodes
builds here what dicts of tensors are made of, by two functions that are known by name; any other opcode or name is
refused. A tensor's numbers stay in the file until they are asked for.

Values of the file are put into a message only once they are known to be numbers or strings: a few bytes of pickle make
tuples in tuples that no time suffices to print, or to hash.
"""

import dataclasses
import functools
import math
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from nca_jax.errors import UserError

MAX_PICKLE = 1 << 23  # bytes; 1.6B parameters with the moments of Adam take 0.1 MB
MAX_DIMENSIONS = 8
LOCAL_HEADER = struct.Struct('<4s22xHH')  # signature, and the lengths of the name and of the extra field after it
STORAGES = {
    'FloatStorage': np.float32,
    'DoubleStorage': np.float64,
    'HalfStorage': np.float16,
    'BFloat16Storage': jnp.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}
DTYPES = ('float32', 'float64', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool')
ORDERED_DICT, REBUILD = 'collections OrderedDict', 'torch._utils _rebuild_tensor_v2'
GLOBALS = {ORDERED_DICT, REBUILD, *(f'torch {name}' for name in (*STORAGES, *DTYPES))}
LITERALS = {
    *('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT'),
    *('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'),
}
CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
EMPTY = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}


@dataclasses.dataclass(frozen=True)
class Global:
    """A name of Python's, as 'module name'. It stands for itself: nothing is imported."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """`size` numbers of one dtype in the file, from byte `start` on."""

    file: Path
    start: int
    size: int
    dtype: np.dtype
    checksum: int

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """The file's bytes, mapped. UserError where they aren't those that were written."""
        raw = np.memmap(self.file, np.uint8, 'r', self.start, (self.size * self.dtype.itemsize,))
        _demand(zlib.crc32(raw) == self.checksum, self.file, f'is damaged at byte {self.start}: a checksum is wrong')
        return raw.view(self.dtype)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that lies in the file; `strides` and `offset` count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    def read(self) -> np.ndarray:
        """Its numbers, read-only and mapped from the file."""
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            self.storage.numbers[self.offset :], self.shape, strides, writeable=False
        )


def load(path: Path) -> Any:
    """What `torch.save` was given: dicts, lists, tuples, numbers, strings, and a `Tensor` for every tensor.

    Raises UserError, naming the file and what is wrong, for a file that isn't such a zip file, is damaged, or holds
    anything else.
    """
    try:
        with open(path, 'rb') as stream, zipfile.ZipFile(stream) as archive:
            members = _members(path, archive, stream.seek(0, 2))
            program = archive.read(_only(path, members, 'data.pkl'))
            if (order := members.get('byteorder')) is not None:
                _demand(archive.read(order) == b'little', path, 'has another byte order than little-endian')
            storage = functools.partial(_storage, path, stream, members)
            return _Machine(path, storage).run(program)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror or error}') from None
    except (zipfile.BadZipFile, NotImplementedError) as error:  # what zipfile raises of odd files
        old = 'torch.save has written zip files since PyTorch 1.6; load and save an older file with it anew'
        raise UserError(f'{path}: not a whole zip file ({error}). {old}') from None
    except (ValueError, LookupError, TypeError, EOFError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path}: not a checkpoint that torch.save wrote: {error}') from None


def _demand(ok: bool, path: Path, wrong: str) -> None:
    if not ok:
        raise UserError(f'{path}: {wrong}')


def _members(path: Path, archive: zipfile.ZipFile, length: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by their names below its one folder, all of them inside the file's `length` bytes."""
    members, roots = {}, set()
    for info in archive.infolist():
        root, *parts = info.filename.split('/')
        name, roots = '/'.join(parts), roots | {root}
        plain = parts and len(roots) == 1 and '\\' not in info.filename and not {'', '.', '..'} & {root, *parts}
        _demand(plain, path, f'has a file named {info.filename!r}, which torch.save would not write')
        _demand(name not in members, path, f'has two files named {name!r}')
        stored = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
        _demand(
            stored and not info.flag_bits & 1, path, f'{name} is compressed or encrypted, which torch.save never does'
        )
        _demand(info.header_offset + info.file_size <= length, path, f'ends before {name} does')
        members[name] = info
    return members


def _only(path: Path, members: Mapping[str, zipfile.ZipInfo], name: str) -> zipfile.ZipInfo:
    _demand(name in members, path, f'has no {name}, so torch.save did not write it')
    _demand(members[name].file_size <= MAX_PICKLE, path, f'its {name} is over {MAX_PICKLE:,} bytes')
    return members[name]


def _storage(path: Path, stream: Any, members: Mapping[str, zipfile.ZipInfo], given: Any) -> Storage:
    """The storage that a persistent id names: ('storage', type, key, device, count of numbers)."""
    shaped = isinstance(given, tuple) and len(given) == 5 and given[0] == 'storage' and isinstance(given[1], Global)
    _demand(shaped and given[1].name.removeprefix('torch ') in STORAGES, path, 'refers to something that is no storage')
    _, kind, key, _, size = given
    named = isinstance(key, str) and re.fullmatch(r'[0-9]{1,20}', key) and type(size) is int
    _demand(named, path, 'refers to a storage without a number for a name')
    info = members.get(f'data/{key}')
    _demand(info is not None, path, f'lacks the storage data/{key}')
    dtype = np.dtype(STORAGES[kind.name.removeprefix('torch ')])
    _demand(
        size * dtype.itemsize == info.file_size,
        path,
        f'data/{key} has {info.file_size} bytes, not those of {size} numbers of {dtype}',
    )
    stream.seek(info.header_offset)
    signature, name, extra = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
    _demand(signature == b'PK\3\4', path, f'is damaged: no header before data/{key}')
    start = info.header_offset + LOCAL_HEADER.size + name + extra
    _demand(start + info.file_size <= stream.seek(0, 2), path, f'ends before data/{key} does')
    return Storage(path, start, size, dtype, info.CRC)


class _Machine:
    """The part of pickle's stack machine that builds plain objects and tensors."""

    def __init__(self, path: Path, storage: Callable[[Any], Storage]):
        self._path, self._storage = path, storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(program):
            self._step(opcode.name, argument)
        _demand(len(self._stack) == 1, self._path, 'its data.pkl is damaged')
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        push, pop = self._stack.append, self._stack.pop
        match name:
            case 'PROTO' | 'FRAME' | 'STOP':
                pass
            case _ if name in LITERALS:
                push(argument)
            case _ if name in CONSTANTS:
                push(CONSTANTS[name])
            case _ if name in EMPTY:
                push(EMPTY[name]())
            case 'BINGET' | 'LONG_BINGET':
                push(self._memo[argument])
            case 'BINPUT' | 'LONG_BINPUT':
                self._memo[argument] = self._stack[-1]
            case 'MEMOIZE':
                self._memo[len(self._memo)] = self._stack[-1]
            case 'MARK':
                self._marks.append(len(self._stack))
            case 'TUPLE':
                push(tuple(self._since_mark()))
            case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
                push(tuple(reversed([pop() for _ in range(int(name[-1]))])))
            case 'APPEND':
                item = pop()
                self._top(list).append(item)
            case 'APPENDS':
                items = self._since_mark()
                self._top(list).extend(items)
            case 'SETITEM':
                value, key = pop(), pop()
                self._set(key, value)
            case 'SETITEMS':
                items = self._since_mark()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    self._set(key, value)
            case 'GLOBAL':
                push(self._global(argument))
            case 'STACK_GLOBAL':
                names = [pop(), pop()][::-1]
                _demand(all(isinstance(each, str) for each in names), self._path, 'names an object not by strings')
                push(self._global(' '.join(names)))
            case 'BINPERSID':
                push(self._storage(pop()))
            case 'REDUCE':
                arguments, function = pop(), pop()
                push(self._call(function, arguments))
            case 'BUILD':  # attributes of an OrderedDict, such as the _metadata of a module's state: nobody needs them
                pop()
                self._top(dict)
            case _:
                _demand(False, self._path, f'its data.pkl has the opcode {name}, which no dict of tensors needs')

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        _demand(type(top) is kind, self._path, f'its data.pkl uses a {type(top).__name__} as a {kind.__name__}')
        return top

    def _set(self, key: Any, value: Any) -> None:
        # Nested tuples would take exponential time to hash.
        _demand(isinstance(key, str | int | float | None), self._path, f'a dict has a {type(key).__name__} as a key')
        self._top(dict)[key] = value

    def _global(self, name: str) -> Global:
        allowed = f'allowed are {ORDERED_DICT}, {REBUILD} and the storages and dtypes of torch'
        _demand(name in GLOBALS, self._path, f'refused, it names {name[:100]!r}; {allowed}')
        return Global(name)

    def _call(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, Global) else type(function).__name__
        _demand(type(arguments) is tuple, self._path, f'calls {name} without a tuple of arguments')
        if name == ORDERED_DICT and not arguments:
            return {}
        _demand(name == REBUILD and len(arguments) == 6, self._path, f'refused, it calls {name} in an odd way')
        storage, offset, shape, strides = arguments[:4]
        self._check(storage, offset, shape, strides)
        return Tensor(storage, offset, shape, strides)

    def _check(self, storage: Any, offset: Any, shape: Any, strides: Any) -> None:
        """Whether such a tensor lies within its storage, and isn't larger than it."""
        _demand(isinstance(storage, Storage), self._path, 'a tensor has no storage')
        sized = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= MAX_DIMENSIONS
        _demand(sized, self._path, 'a tensor has no shape with as many strides')
        counts = all(type(number) is int and number >= 0 for number in (offset, *shape, *strides))
        _demand(counts, self._path, 'a tensor has an offset, shape or strides that are no counts')
        count = math.prod(shape)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        inside = count == 0 or (last < storage.size and count <= storage.size)
        said = f'offset {offset}, shape {shape} and strides {strides}'
        _demand(inside, self._path, f'a tensor of {said} is larger than its storage of {storage.size} numbers')
