"""What runs may say: the rule of `verdicts` in params.yaml, applied to the rows at hand."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from resnet_repro.params import Prior, Verdicts
from resnet_repro.reporting.load import Row
from resnet_repro.statistics import Interval, PriorCheck, Spread, at_look, check_prior, equivalence, seed_spread


@dataclass(frozen=True)
class Rule:
    settings: Verdicts
    check: PriorCheck | None
    """of the prior, by all rows together; None: no row has two runs"""

    @classmethod
    def of(cls, rows: Iterable[Row], settings: Verdicts) -> "Rule":
        full = (row.test_error.values for row in rows if row.runs and not row.is_short)
        return cls(settings, check_prior(full, settings.prior))

    @property
    def prior(self) -> Prior | None:
        """None: our runs refute it."""
        return self.settings.prior if self.check is None or self.check.holds else None

    @property
    def confidence(self) -> str:
        return f"{100 * (1 - 2 * self.settings.alpha):g}%"

    def judged(self, values: Sequence[float]) -> Sequence[float]:
        """The runs that count today, of one value per run, by seed."""
        return at_look(values, self.settings.looks)

    def spread(self, *samples: Sequence[float]) -> Spread | None:
        return seed_spread(samples, self.prior)

    def interval(self, values: Sequence[float]) -> Interval | None:
        """Of the mean, by the runs that count today; None where no spread is known."""
        judged = self.judged(values)
        return equivalence(judged, 0.0, 0.0, self.settings.alpha, self.spread(judged)).interval if judged else None

    def next_look(self, runs: int) -> int | None:
        """The number of runs at which more can be said; None after the last look."""
        return next((look for look in self.settings.looks if look > runs), None)

    def check_text(self) -> str:
        """The state of the prior, a sentence."""
        prior = self.settings.prior
        known = f"{prior.sd_ratio:g} times that of independent errors, {prior.degrees_of_freedom} degrees of freedom"
        if self.check is None:
            return f"**The prior** ({known}): not checked by our own runs yet, since no row has two."
        found = f"{self.check.ratio:.2f} times, {self.check.degrees_of_freedom} degrees of freedom"
        state = "stands" if self.check.holds else f"is dropped for all rows (it falls at p = {prior.alpha:g})"
        return f"**The prior** ({known}) {state}: our own runs spread {found}, p = {self.check.p_value:.2g}."
