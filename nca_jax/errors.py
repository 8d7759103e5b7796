"""Errors that the front end tells in one line, and the exit codes of all commands."""

# 1: a loss that isn't finite, or a failed run of a study. 74 and 75 are sysexits.h's: input or output failed, and a
# temporary failure, after which the same command goes on.
DONE, FAILED, BAD_INPUT, DISK_FAILED, PREEMPTED, INTERRUPTED = 0, 1, 2, 74, 75, 130


class UserError(ValueError):
    """Bad input: the message is one line that names what is wrong, where, and what is allowed."""


class NotFiniteError(RuntimeError):
    """The loss became infinite or NaN, so training stopped."""


class FieldError(UserError):
    """An impossible value of one config field. `experiment` puts the path of the block before the field's name."""

    def __init__(self, field: str, value: object, allowed: str):
        super().__init__(f'{field} = {value!r}: {allowed}')
        self.field, self.value, self.allowed = field, value, allowed


def check(ok: bool, field: str, value: object, allowed: str) -> None:
    """Raises FieldError unless `ok`; `allowed` says in a few words what the field may be."""
    if not ok:
        raise FieldError(field, value, allowed)
