"""Landlock: a program reads certain folders, writes into one, and reaches no TCP port, signal or socket outside."""

import os
import struct
from collections.abc import Iterable

from nca_jax.sandbox import kernel

WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
REFER, TRUNCATE = 1 << 13, 1 << 14
READ = READ_FILE | READ_DIR
# The private folder, too, gets no right to run programs or to make devices, pipes and sockets.
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE
# How many file rights each version of the interface has.
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
# Bind and connect of TCP, from version 4.
NETWORK = 0b11
# Abstract Unix sockets and signals, from version 6.
SCOPES = 0b11
CREATE_VERSION, PATH_BENEATH = 1, 1


def version() -> int:
    """Returns the version of the kernel's interface; 0 if it has none or it is switched off."""
    try:
        return kernel.call('landlock_create_ruleset', None, 0, CREATE_VERSION)
    except OSError:
        return 0


def rules(read: Iterable[str], write: str) -> int:
    """Returns a file number of rules: read below `read`, read and write below `write`, all else refused."""
    # The version of the interface decides how much else that is.
    abi = version()
    rights = (1 << FILE_RIGHTS[max(version for version in FILE_RIGHTS if version <= abi)]) - 1
    # struct landlock_ruleset_attr. An older kernel takes a longer structure than its own if the rest is zero.
    ruleset = struct.pack('=QQQ', rights, NETWORK if abi >= 4 else 0, SCOPES if abi >= 6 else 0)
    number = kernel.call('landlock_create_ruleset', ruleset, len(ruleset), 0)
    for path, allowed in [*((path, READ) for path in read), (write, WRITE & rights)]:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        # struct landlock_path_beneath_attr, which has no padding.
        kernel.call('landlock_add_rule', number, PATH_BENEATH, struct.pack('=Qi', allowed, folder), 0)
        os.close(folder)
    return number
