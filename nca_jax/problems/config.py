"""The config block of a benchmark."""

import dataclasses

from nca_jax.decode.decoder import DecodeConfig
from nca_jax.decode.sampling import Sampling
from nca_jax.errors import check
from nca_jax.problems.sets import CODE, ProblemsConfig


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Test problems that are answered by sampling, and scored by pass@k.

    limit: problems of each task at most, 0 for all. shots: worked examples before each, of training's. samples: answers
    to each, of max_tokens at most, which end before the first of the strings `stops` or at the end of text. run_code:
    whether programs that answer HumanEval are run, in a sandbox; else they are written down for the judge.
    """

    problems: ProblemsConfig
    limit: int
    shots: int
    samples: int
    max_tokens: int
    stops: tuple[str, ...]
    sampling: Sampling
    batch: DecodeConfig
    run_code: bool

    def __post_init__(self):
        check(self.limit >= 0, 'limit', self.limit, 'must be 0 (all) or more')
        check(self.shots >= 0, 'shots', self.shots, 'must be 0 or more')
        code = self.problems.task == CODE
        check(not (code and self.shots), 'shots', self.shots, f'must be 0 for {CODE}, which has no training problems')
        for field in ('samples', 'max_tokens'):
            check(getattr(self, field) > 0, field, getattr(self, field), 'must be positive')
        check(all(self.stops), 'stops', self.stops, 'must hold no empty string')
        check(code or not self.run_code, 'run_code', self.run_code, f'must be false unless the task is {CODE}')
