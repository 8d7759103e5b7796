"""The command line: `python -m nca_jax COMMAND`. Lists the commands, starts one, and turns errors into exit codes.

A command is a module with a docstring (its --help), `add_flags(parser)` and `run(args)`, which returns an exit code or
None. It imports JAX and the like inside `run`, so that --help answers at once.
"""

import argparse
import errno
import importlib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from nca_jax.errors import BAD_INPUT, DISK_FAILED, DONE, FAILED, INTERRUPTED, NotFiniteError, UserError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)

# Name: (module, what it does).
COMMANDS = {
    'train': ('nca_jax.main', 'train one stage of an experiment, or evaluate it'),
    'study': ('nca_jax.study', 'train all runs of a study and report on them'),
    'report': ('nca_jax.report.write', 'write tables, figures and a page about finished runs'),
    'prepare': ('nca_jax.data.prepare', 'make token shards of a corpus ahead of time'),
    'show': ('nca_jax.look.show', 'draw and measure the automata of an experiment'),
    'calibrate': ('nca_jax.look.calibrate', 'find the automata that are as complex as a text'),
    'cost': ('nca_jax.scale.cost', 'count tokens, FLOPs and hours of a run'),
    'aot': ('nca_jax.scale.aot', 'compile a run for absent TPUs: does it fit, what does it move'),
    'export': ('nca_jax.hf.export', 'write a run as a Hugging Face folder'),
    'adopt': ('nca_jax.hf.adopt', 'make weights from elsewhere the parent of runs'),
    'judge': ('nca_jax.sandbox.judge', 'test programs that a model wrote, in a sandbox'),
    'harness': ('nca_jax.evals.harness', 'run tasks of lm-evaluation-harness on a run'),
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors: one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}; see {self.prog} --help')


def add_config(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Adds --config, required without a default. `args.changes` will hold (field, value) for each --config.a.b=c."""
    known = '' if default is None else f' ({default})'
    parser.add_argument(
        '--config',
        default=default,
        required=default is None,
        metavar='FILE[:WORDS]',
        help=f'an experiment and words that choose a variant{known}; --config.a.b=c changes one field',
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code. Mistakes of the user become one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ('-h', '--help'):
        lines = [f'  {name:<10} {does}' for name, (_, does) in COMMANDS.items()]
        print('python -m nca_jax COMMAND [--help]', '', *lines, sep='\n')
        return DONE
    try:
        return start_command(argv[0], argv[1:]) or DONE
    except UserError as error:
        code, line = BAD_INPUT, f'error: {error}'
    except NotFiniteError as error:
        code, line = FAILED, f'stopped: {error}'
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        code, line = DISK_FAILED, f'error: {error.filename or "disk"}: {error.strerror}'
    except KeyboardInterrupt:
        code, line = INTERRUPTED, 'interrupted'
    print(line, file=sys.stderr)
    return code


def start(*command: str) -> NoReturn:
    """The entry point of the process: `main`, then the exit. `command` comes before the process's own arguments."""
    code = main([*command, *sys.argv[1:]])
    # After an error, one of several processes must not wait for the others, as it would in JAX's own exit. The module
    # is looked up, not imported: a command that never loaded JAX is alone.
    if code and 'nca_jax.distributed' in sys.modules:
        sys.modules['nca_jax.distributed'].leave(code)
    sys.exit(code)


def start_command(name: str, argv: list[str]) -> int | None:
    """Parses the flags of a command and runs it. Raises UserError for an unknown command or flag."""
    if name not in COMMANDS:
        raise UserError(f'{name!r} is no command; known are {", ".join(COMMANDS)}')
    module = importlib.import_module(COMMANDS[name][0])
    parser = Parser(
        prog=f'python -m nca_jax {name}',
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # else a slip such as --work would quietly become --workers
    )
    module.add_flags(parser)
    rest, changes = split_changes(argv)
    args = parser.parse_args(rest)
    if changes and not hasattr(args, 'config'):
        raise UserError(f'unexpected argument --config.{changes[0][0]}; {name} takes no --config')
    args.changes = changes
    return module.run(args)


def split_changes(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes --config.a.b=c and --config.a.b c out of the arguments: (the rest, [('a.b', 'c')])."""
    rest, changes, words = [], [], iter(argv)
    for word in words:
        change = re.fullmatch(r'--config\.([\w.]+)(?:=(.*))?', word, re.DOTALL)
        if change is None:
            rest.append(word)
            continue
        value = next(words, None) if change[2] is None else change[2]
        if value is None:
            raise UserError(f'{word}: needs a value: {word}=VALUE')
        changes.append((change[1], value))
    return rest, changes
