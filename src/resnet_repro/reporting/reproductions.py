"""The page of what everybody got: printed, in the source projects, by others, from published weights, and by us."""

from collections.abc import Iterable, Iterator

import pandas as pd

from resnet_repro.evidence import AuditedNet
from resnet_repro.papers import judged_against, paper_numbers, source_project_numbers
from resnet_repro.reporting.judge import Rule
from resnet_repro.reporting.load import Evidence, Row
from resnet_repro.reporting.tables import WRITTEN, details, markdown, percent
from resnet_repro.reporting.verdicts import NONE, printed
from resnet_repro.reproductions import REPRODUCTIONS, Reproduction, reproductions_of

Line = dict[str, str]


def reproductions_page(evidence: Evidence, rule: Rule, picture: str) -> str:
    """Markdown; rows with runs first, all others folded."""
    projects = len({number.project for number in REPRODUCTIONS})
    text = (
        "What the papers and the two source projects print, what others got who trained the same nets "
        f"({len(REPRODUCTIONS)} numbers of {projects} projects, "
        "[as data](../src/resnet_repro/reproductions.csv)), what published weights give on the official test images "
        "([audit](audit.md)), and what our runs give. Test errors in percent, ± standard deviation over runs."
    )
    full, rows = evidence.full, [row for row in evidence.full if row.runs]
    waiting = dict.fromkeys(row.model for row in full if not row.runs)
    others = dict.fromkeys(n.model for n in REPRODUCTIONS if n.model not in {row.model for row in full})
    blocks = ["# What everybody got", WRITTEN, text, picture]
    for row in rows:
        lines = [*_printed(row.model), _ours(row, rule), *_by_others(row.model, evidence.audited)]
        blocks += [f"## {row.name}", markdown(pd.DataFrame(lines))]
    for title, models in (("Rows that have not run here", waiting), ("Nets that are no row here", others)):
        if models:
            blocks += [f"## {title}", *(_folded(model, evidence.audited) for model in models)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _folded(model: str, audited: Iterable[AuditedNet]) -> str:
    errors = [number.error_percent for number in reproductions_of(model) if not number.mislabelled]
    judged = judged_against(model)
    summary = [f"printed {printed(judged)}" if judged else "not printed"]
    if errors:
        numbers = f"{len(errors)} by others, {min(errors):.2f} to {max(errors):.2f}"
        summary.append(numbers if len(errors) > 1 else f"1 by others, {errors[0]:.2f}")
    table = pd.DataFrame([*_printed(model), *_by_others(model, audited)])
    return details(f"{model}: {'; '.join(summary)}", markdown(table))


def _printed(model: str) -> Iterator[Line]:
    for who, numbers in (("paper", paper_numbers(model)), ("source project", source_project_numbers(model))):
        for number in numbers:
            if number.role != "recorded":
                yield _line(f"{who}: {number.source}", printed(number), number.statistic, remarks=number.note)


def _ours(row: Row, rule: Rule) -> Line:
    error, interval = row.test_error, rule.interval(row.test_error.values)
    judged = len(rule.judged(error.values))
    by = "" if judged == error.n else f" by the first {judged}"  # of the last look
    spread = "" if error.std is None else f" ± {error.std:.2f}"
    reach = f"; {rule.confidence} interval{by} {interval[0]:.2f} to {interval[1]:.2f}" if interval else ""
    return _line(
        "**this repository**",
        f"{percent(error.mean)}{spread}",
        "single run" if error.n == 1 else f"mean of {error.n}",
        "last",
        f"{50 - row.plan.recipe.held_out / 1000:g}k",
        f"trained in {' on '.join(row.arithmetic)}{reach}",
    )


def _by_others(model: str, audited: Iterable[AuditedNet]) -> Iterator[Line]:
    for file in audited:
        if file.net == model:
            yield _line(f"weights of {file.collection}, [audited](audit.md)", percent(file.test_error_percent))
    for number in reproductions_of(model):
        yield _reproduction(number)


def _reproduction(number: Reproduction) -> Line:
    spread = "" if number.sd_points is None else f" ± {number.sd_points:.2f}"
    wrong_name = f"**another net** ({number.mislabelled}); " if number.mislabelled else ""
    return _line(
        f"[{number.project}]({number.link})",
        f"{number.error_percent:.2f}{spread}",
        number.statistic + (f" of {number.runs}" if number.runs > 1 else ""),
        number.epoch,
        number.split,
        wrong_name + number.deviations,
    )


def _line(who: str, error: str, statistic: str = "", epoch: str = "", split: str = "", remarks: str = "") -> Line:
    return {
        "who": who,
        "test error": error,
        "statistic": statistic or NONE,
        "epoch": epoch or NONE,
        "trained on": split or NONE,
        "deviations, remarks": remarks or NONE,
    }
