"""Reads checkpoints of PyTorch without PyTorch, and without running anything that a file says.

Why this exists: a `.pt` file holds a pickle, and unpickling calls whatever the pickle names. PyTorch's own
`weights_only` was bypassed twice. `pickle.Unpickler` with a list of allowed names was tried: a few bytes make it hang
on nested tuples or allocate by the index of a memo, and BUILD rewrites our own objects. So a machine of a few opcodes
builds dicts, lists, tuples, numbers, strings and tensors here; any other opcode or name is refused.

Since PyTorch 1.6 `torch.save` writes a zip file that isn't compressed: `data.pkl`, the pickle, and the numbers of every
storage, which stay there until they are read.
"""

import contextlib
import dataclasses
import math
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from nca_jax.errors import UserError

# In bytes; 1.6B parameters with the moments of Adam take 0.1 MB. Reading takes time and memory of its length.
MAX_PICKLE = 1 << 23
STORAGES = {
    'torch FloatStorage': np.float32,
    'torch DoubleStorage': np.float64,
    'torch HalfStorage': np.float16,
    'torch BFloat16Storage': jnp.bfloat16,
    'torch LongStorage': np.int64,
    'torch IntStorage': np.int32,
    'torch ShortStorage': np.int16,
    'torch CharStorage': np.int8,
    'torch ByteStorage': np.uint8,
    'torch BoolStorage': np.bool_,
}
# What the pickle may name: two functions, and the types of storages.
GLOBALS = {'collections OrderedDict', 'torch._utils _rebuild_tensor_v2', *STORAGES}
# Opcodes of protocol 2, which torch.save writes: they push their argument, a constant, or something new and empty.
LITERALS = {'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE'}
CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
EMPTY = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}


@dataclasses.dataclass(frozen=True)
class Global:
    """A name of Python's, as 'module name'. It stands for itself: nothing is imported."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """`size` numbers of one dtype, a member of the zip file."""

    file: Path
    member: str
    size: int
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that lies in the file; `strides` and `offset` count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Its numbers, read-only. UserError if the file is damaged."""
        stored = self.storage
        # The whole storage, since zipfile compares the checksum at its end. Parameters have storages of their own.
        with _refusals(stored.file), zipfile.ZipFile(stored.file) as archive:
            numbers = np.frombuffer(archive.read(stored.member), stored.dtype)
        strides = [stride * stored.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)


def load(path: Path) -> Any:
    """The content of the file: dicts, lists, tuples, numbers, strings, and a `Tensor` for every tensor.

    Raises UserError, which names the file and what is wrong with it, for any other.
    """
    with _refusals(path), zipfile.ZipFile(path) as archive:
        members, length = {}, path.stat().st_size
        for info in archive.infolist():
            # All lie in one folder, named after the file.
            name = info.filename.partition('/')[2]
            _demand(name not in members, f'has two files named {name!r}')
            # Anything else could grow without bound as it's read.
            stored = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
            _demand(stored, f'{name!r} is compressed, which torch.save never does')
            _demand(info.header_offset + info.file_size <= length, f'ends before {name!r} does')
            members[name] = info
        program = members.get('data.pkl')
        _demand(program is not None, 'it has no data.pkl')
        _demand(program.file_size <= MAX_PICKLE, f'its data.pkl is over {MAX_PICKLE:,} bytes')
        if 'byteorder' in members:
            _demand(archive.read(members['byteorder']) == b'little', 'has another byte order than little-endian')
        return _Machine(path, members).run(archive.read(program))


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turns what zipfile and the machine raise about a file into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{path}: {error.strerror or error}') from None
    # For encrypted and other odd members zipfile raises RuntimeError. The others are demands, and a pickle that pops an
    # empty stack, names a memo that isn't there, or ends in the middle.
    except (zipfile.BadZipFile, RuntimeError, ValueError, LookupError, TypeError, EOFError, struct.error) as error:
        raise UserError(f'{path}: not a checkpoint that PyTorch 1.6 or later wrote: {error}') from None


def _demand(ok: bool, wrong: str) -> None:
    # Messages quote values only once they are known to be numbers or strings: a few bytes of pickle make tuples in
    # tuples that no time suffices to print, or to hash.
    if not ok:
        raise ValueError(wrong)


class _Machine:
    """The part of pickle's stack machine that builds plain objects and tensors."""

    def __init__(self, path: Path, members: Mapping[str, zipfile.ZipInfo]):
        self._path, self._members = path, members
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(program):
            self._step(opcode.name, argument)
        _demand(len(self._stack) == 1, 'its data.pkl is damaged')
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        push, pop = self._stack.append, self._stack.pop
        match name:
            case 'PROTO' | 'STOP':
                pass
            case _ if name in LITERALS:
                push(argument)
            case _ if name in CONSTANTS:
                push(CONSTANTS[name])
            case _ if name in EMPTY:
                push(EMPTY[name]())
            case 'BINGET' | 'LONG_BINGET':
                push(self._memo[argument])
            # A dict, not a list: an index of 2**32 takes no memory.
            case 'BINPUT' | 'LONG_BINPUT':
                self._memo[argument] = self._stack[-1]
            case 'MARK':
                self._marks.append(len(self._stack))
            case 'TUPLE':
                push(tuple(self._since_mark()))
            case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
                push(tuple(reversed([pop() for _ in range(int(name[-1]))])))
            case 'APPEND' | 'APPENDS':
                items = self._since_mark() if name == 'APPENDS' else [pop()]
                self._top(list).extend(items)
            case 'SETITEM' | 'SETITEMS':
                items = self._since_mark() if name == 'SETITEMS' else [pop(), pop()][::-1]
                for key, value in zip(items[::2], items[1::2], strict=True):
                    # Nested tuples would take exponential time to hash.
                    _demand(isinstance(key, str | int | float | None), f'a dict has a {type(key).__name__} as a key')
                    self._top(dict)[key] = value
            case 'GLOBAL':
                _demand(argument in GLOBALS, f'refused, it names {argument[:100]!r}, which no dict of tensors needs')
                push(Global(argument))
            case 'BINPERSID':
                push(self._storage(pop()))
            case 'REDUCE':
                arguments, function = pop(), pop()
                push(_call(function, arguments))
            case 'BUILD':
                # Attributes of an OrderedDict, such as the _metadata of a module's state: nobody needs them.
                pop()
                self._top(dict)
            case _:
                raise ValueError(f'its data.pkl has the opcode {name}, which no dict of tensors needs')

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        # Not a subclass, and above all not one of the classes above.
        _demand(type(top) is kind, f'its data.pkl uses a {type(top).__name__} as a {kind.__name__}')
        return top

    def _storage(self, given: Any) -> Storage:
        """The storage that a persistent id names: ('storage', type, key, device, count of numbers)."""
        match given:
            case ('storage', Global(name=kind), str(key), _, int(size)) if f'data/{key}' in self._members:
                _demand(kind in STORAGES, f'has a storage of type {kind}')
                info, dtype = self._members[f'data/{key}'], np.dtype(STORAGES[kind])
                wrong = f'data/{key} has {info.file_size} bytes, not those of {size} numbers of {dtype}'
                _demand(size * dtype.itemsize == info.file_size, wrong)
                return Storage(self._path, info.filename, size, dtype)
        raise ValueError('refers to a storage that it lacks')


def _call(function: Any, arguments: Any) -> Any:
    """The two calls that are known: an empty OrderedDict, and a tensor inside its storage, no larger than that."""
    match function, arguments:
        case Global(name='collections OrderedDict'), ():
            return {}
        case (
            Global(name='torch._utils _rebuild_tensor_v2'),
            (Storage() as storage, offset, tuple(shape), tuple(strides), _, _),
        ):
            counts = all(type(number) is int and number >= 0 for number in (offset, *shape, *strides))
            counts = counts and len(shape) == len(strides) <= 8
            _demand(counts, 'a tensor has an odd offset, shape or strides')
            # How many numbers from the offset on it lies in; 0 without elements.
            spans = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
            reach = 1 + sum(spans) if math.prod(shape) else 0
            # Strides of 0 repeat numbers: a tensor larger than its storage could take memory that no file has.
            inside = offset + reach <= storage.size and math.prod(shape) <= storage.size
            extent = f'offset {offset}, shape {shape} and strides {strides}'
            _demand(inside, f'a tensor of {extent} is larger than its storage of {storage.size} numbers')
            return Tensor(storage, offset, shape, strides)
    name = function.name if isinstance(function, Global) else type(function).__name__
    raise ValueError(f'refused, it calls {name} in an odd way')
