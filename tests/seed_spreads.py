"""How far test errors of the same net and recipe lie apart by their seeds alone, from other people's runs.

`seed_spreads.csv` has the published standard deviations of the papers' nets. Their ratio to what independent errors
would give is what is known of a row's spread before it has runs of its own: the prior of `verdicts` in params.yaml.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import chi2

from resnet_repro.statistics import independent_sd

TABLE = Path(__file__).parents[1] / "src/resnet_repro/seed_spreads.csv"


def seed_spreads() -> pd.DataFrame:
    """Every published spread found: source, link, model, recipe, runs, mean_percent, sd_points (over n - 1 where the
    single runs are published; as printed where not) and left_out (why it is not pooled; "" where it is)."""
    table = pd.read_csv(TABLE, dtype={"errors_percent": str, "left_out": str}).fillna({"left_out": ""})
    for row, errors in table.pop("errors_percent").dropna().items():
        runs = np.array(errors.split(), dtype=float)
        table.loc[row, ["runs", "mean_percent", "sd_points"]] = len(runs), runs.mean(), runs.std(ddof=1)
    return table.astype({"runs": int})


def pooled_ratio(table: pd.DataFrame) -> tuple[float, tuple[float, float], int]:
    """Published to independent standard deviation over the rows of the table: root mean square weighted with the
    degrees of freedom, its chi-squared 95% interval, and their number."""
    freedom = table.runs - 1
    ratio = table.sd_points / table.mean_percent.map(independent_sd)
    total = int(freedom.sum())
    sum_of_squares = float((freedom * ratio**2).sum())
    low, high = np.sqrt(sum_of_squares / chi2.ppf([0.975, 0.025], total))
    return float(np.sqrt(sum_of_squares / total)), (float(low), float(high)), total
