"""The one config block of everything made from automata."""

import dataclasses

from nca_jax.errors import check
from nca_jax.nca.complexity import ComplexityConfig
from nca_jax.nca.patches import PatchVocab, tokens_per_grid
from nca_jax.nca.rollout import RolloutSpec
from nca_jax.nca.rule import RuleSpec

COUNTS = (
    'band_sample',
    'rules_per_epoch',
    'trajectories_per_rule',
    'candidates_per_rule',
    'search_block',
    'stream_block',
)
CHOICES = {
    'band_by': ('score', 'quantile'),
    'held_out': ('rules', 'trajectories'),
    'shuffle': ('none', 'tokens', 'frames'),
}


@dataclasses.dataclass(frozen=True)
class NCAConfig:
    """Sequences of automata. Where the paper and the release of its code differ, both values are given.

    rule: the family of rules; see RuleSpec for padding, temperature and start.
    burn_in: updates before the first frame (10).
    stride: updates between frames (1).
    patch: side of the square of cells that makes one token (2).
    complexity: how a rule's first trajectory is scored.
    band: accepted are rules with low < score < high, e.g. gzip ratios of (0.5, 2.0) for the paper's 50+ %.
    band_by: 'score' takes the band as it is; 'quantile' as shares of unfiltered rules, so that (0.5, 1.0) is the more
        complex half for every alphabet and measure (see bank.thresholds).
    band_sample: unfiltered rules from which the quantiles are taken.
    rules_per_epoch: accepted rules in one set (16,000).
    trajectories_per_rule: sequences drawn from each rule in an epoch (1).
    fresh_rules: another set of rules each epoch (paper), or one set for all epochs with new trajectories (release).
    held_out: validation has 'rules' drawn anew (of a small family, such as the 256 elementary ones, partly the same),
        or other 'trajectories' of the training rules (where there is just one).
    shuffle: a control without dynamics: 'tokens' permutes a sequence's patch tokens, 'frames' its whole grids; 'none'.
    mask_grids: targets within the first so many grids carry no loss (1), since the rule can't be known yet.
    candidates_per_rule: the search for a set gives up after so many candidates for each rule wanted.
    search_block, stream_block: so many trajectories are computed at a time, in the search for rules and for a batch;
        another value may round differently. A device pads its rows of a batch to whole blocks.
    """

    rule: RuleSpec
    burn_in: int
    stride: int
    patch: int
    complexity: ComplexityConfig
    band: tuple[float, float]
    band_by: str
    band_sample: int
    rules_per_epoch: int
    trajectories_per_rule: int
    fresh_rules: bool
    held_out: str
    shuffle: str
    mask_grids: int
    candidates_per_rule: int
    search_block: int
    stream_block: int

    def __post_init__(self):
        for field in COUNTS:
            check(getattr(self, field) >= 1, field, getattr(self, field), 'at least 1')
        for field, allowed in CHOICES.items():
            check(getattr(self, field) in allowed, field, getattr(self, field), f'one of {", ".join(allowed)}')
        check(self.mask_grids >= 0, 'mask_grids', self.mask_grids, 'not negative')
        low, high = self.band
        check(0 <= low < high, 'band', self.band, 'two scores (low, high), 0 <= low < high: this one is empty')
        check(high <= 1 or self.band_by == 'score', 'band', self.band, 'quantiles are at most 1')
        tokens_per_grid(self.vocab, self.rule.height, self.rule.width)  # which checks, as the last line does
        count, width = self.vocab.start, self.complexity.bytes_per_token
        check(count <= 256**width, 'complexity.bytes_per_token', width, f'enough for {count} tokens')
        self.rollout(1)

    @property
    def vocab(self) -> PatchVocab:
        return PatchVocab(self.rule.colours, self.patch)

    @property
    def tokens_per_grid(self) -> int:
        return tokens_per_grid(self.vocab, self.rule.height, self.rule.width)

    @property
    def scored_tokens(self) -> int:
        """Tokens that a score is made of: whole grids without their two delimiters (360)."""
        return self.complexity.frames * (self.tokens_per_grid - 2)

    @property
    def first_loss_at(self) -> int:
        """The first target position with a loss: targets are shifted by one (37 for one 12 x 12 grid of 2 x 2)."""
        return max(0, self.mask_grids * self.tokens_per_grid - 1)

    def rollout(self, frames: int) -> RolloutSpec:
        return RolloutSpec(self.rule, self.burn_in, self.stride, frames)
