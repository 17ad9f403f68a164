"""Write the report, from the evidence alone: Markdown pages, `figures/`, `metrics.json` and `curves.csv`."""

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from resnet_repro.claims import CLAIMS, Claim
from resnet_repro.evidence import replacing, write_atomically
from resnet_repro.reporting import ablations, cards, claims, data_card, figures, reproductions, tables, verdicts
from resnet_repro.reporting.judge import Rule
from resnet_repro.reporting.load import Evidence, Row, load

FIGURES, MODELS, REPRODUCTIONS = "figures", "models", "reproductions"


def write_report(workspace: Path, out: Path, states: Mapping[str, str] | None = None) -> None:
    """Write the report of a workspace into the folder `out`; the same evidence gives the same bytes.

    What it wrote before is replaced when all of it is written, `out/figures` and `out/models` as a whole.

    Args:
        states: what becomes of the runs that have no evidence yet, by run; None: the report does not say.

    Raises:
        ParamsError, ReproError: as `load`.
    """
    evidence = load(workspace)
    rows = evidence.rows
    texts = {f"{MODELS}/{name}": text for name, text in model_pages(evidence).items()} | pages(evidence, states)
    texts["metrics.json"] = json.dumps(tables.metrics(rows), indent=1) + "\n"
    texts["curves.csv"] = tables.curves(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    with replacing(out) as folder, mpl.rc_context(figures.STYLE):
        for name, text in texts.items():
            write_atomically(folder / name, text.encode())
        for name, figure in figures_of(evidence):
            _save(figure, folder / FIGURES / name)


def write_ablations(workspace: Path, out: Path) -> None:
    """Write the page and the figure of the ablations into the folder `out`.

    Raises:
        ParamsError, ReproError: as `load`.
    """
    evidence = load(workspace, ablations=True)
    effects = ablations.effects(evidence)
    with replacing(out) as folder, mpl.rc_context(figures.STYLE):
        (folder / FIGURES).mkdir()
        if effects:
            margin = evidence.params.verdicts.margin_points
            _save(figures.ablation_forest(effects, margin), folder / FIGURES / "ablations")
        write_atomically(folder / "README.md", ablations_page(evidence).encode())


def figures_of(evidence: Evidence) -> Iterator[tuple[str, Figure]]:
    """(file name without suffix, figure), in the report's order."""
    card = evidence.data_card
    if evidence.full:
        rule = Rule.of(evidence.rows, evidence.params.verdicts)
        yield REPRODUCTIONS, figures.reproduction_strips(evidence.full, evidence.audited, rule)
    if any(map(figures.is_in_figure6, evidence.full)):
        yield "figure6", figures.figure6(evidence.full)
    if figures.figure6_rows(evidence.short):
        yield "figure6_short", figures.figure6(evidence.short, full=False)
    if measured := [row for row in evidence.full if row.runs]:
        flops = {row.model: cards.training_flops(row, card.splits["train"].num_images) for row in evidence.full}
        yield "depth", figures.error_against_depth(measured)
        yield "size", figures.error_against_size(measured, flops)
        yield "curves", figures.learning_curves(measured)
    yield "sample_images", figures.sample_images(card.samples, card.classes)
    for row in _with_curve(evidence):
        yield f"curves_{slug(row)}", figures.learning_curve(row)
    for row in _with_runs(evidence):
        yield f"confusion_{slug(row)}", figures.confusion(row, card.classes)


def pages(evidence: Evidence, states: Mapping[str, str] | None = None) -> dict[str, str]:
    """The report's pages by file name, Markdown."""
    rule = Rule.of(evidence.rows, evidence.params.verdicts)
    return {
        "README.md": "\n\n".join(block.strip() for block in _blocks(evidence, states)) + "\n",
        "verdicts.md": _verdicts_page(evidence),
        "claims.md": claims.claims_page(evidence.rows, rule, _claims(evidence, of_ablations=False), evidence.audited),
        "reproductions.md": reproductions.reproductions_page(evidence, rule, _everybody(evidence)),
        "checklist.md": cards.checklist(evidence),
    }


def ablations_page(evidence: Evidence) -> str:
    """What the papers leave open, and the claims that ablations test, Markdown."""
    text = (
        "What the papers leave unsaid or the source projects ask, one choice changed at a time. Differences are "
        "variant minus baseline, in points of test error; intervals are Welch's over the seeds. Runs: "
        "`dvc repro ablations/dvc.yaml`."
    )
    table = ablations.ablation_table(evidence)
    questions = "\n".join(f"- *{name}*: {group.question}" for name, group in evidence.params.ablation_groups.items())
    every, tested = (*evidence.rows, *evidence.ablation_rows), _claims(evidence, of_ablations=True)
    blocks = [
        f"# Ablations\n\n{tables.WRITTEN}\n\n{text}",
        tables.markdown(table) if len(table) else "None are planned.",
        _picture("ablations", "Differences to the baselines.") if ablations.effects(evidence) else "",
        questions,
        claims.claims_page(every, Rule.of(evidence.rows, evidence.params.verdicts), tested, evidence.audited)
        if tested
        else "",
    ]
    return "\n\n".join(block.strip() for block in blocks if block) + "\n"


def _claims(evidence: Evidence, of_ablations: bool) -> list[Claim]:
    models = {run.model for run in evidence.params.ablations.values()}
    return [claim for claim in CLAIMS if models.isdisjoint(claim.models) != of_ablations]


def model_pages(evidence: Evidence) -> dict[str, str]:
    """A card for each row with runs, and their index."""
    rows = _with_runs(evidence)
    index = "\n".join(f"- [{row.name}]({slug(row)}.md)" for row in rows) or "None is trained yet."
    return {
        "README.md": f"# Model cards\n\n{tables.WRITTEN}\n\n{index}\n",
        **{f"{slug(row)}.md": cards.model_card(row, evidence) for row in rows},
    }


README_TABLE = re.compile(r"(<!-- table[^>]*-->\n).*?(<!-- /table -->)", re.DOTALL)


def update_readme(workspace: Path) -> None:
    """Put the comparison tables between the marks of the workspace's README.md."""
    path = workspace / "README.md"
    evidence = load(workspace)
    text = "\n\n".join(tables.main_tables(evidence.full, Rule.of(evidence.rows, evidence.params.verdicts)))
    text = README_TABLE.sub(lambda marks: f"{marks[1]}{text}\n{marks[2]}", path.read_text(encoding="utf-8"))
    write_atomically(path, text.encode())


def slug(row: Row) -> str:
    """A row's name as a file name."""
    return "".join(character if character.isalnum() else "_" for character in row.name).strip("_").replace("__", "_")


def _blocks(evidence: Evidence, states: Mapping[str, str] | None) -> Iterator[str]:
    yield "# Results"
    yield tables.WRITTEN
    yield (
        "**The question.** Three papers print test errors for CIFAR-10: He et al. 2015 (*Deep Residual "
        "Learning*), He et al. 2016 (*Identity Mappings*), Zagoruyko and Komodakis 2016 (*Wide Residual "
        "Networks*). Does training the same nets by the same recipes give these numbers?"
    )
    if evidence.full:
        yield _everybody(evidence)
        yield from tables.main_tables(
            evidence.full, Rule.of(evidence.rows, evidence.params.verdicts), how_to_read=_HOW_TO_READ
        )
    yield (
        "More: [every printed number and its verdict](verdicts.md), [what everybody got](reproductions.md), "
        "[the claims](claims.md), [what the papers leave open](ablations/README.md), "
        "[model cards](models/README.md), [the checklist](checklist.md)."
    )
    if states:
        yield "## Not finished"
        yield tables.markdown(pd.DataFrame({"run": run, "state": state} for run, state in states.items()))
    if evidence.short:
        yield "## Short schedules"
        yield (
            "Trained for less than a paper's schedule, to see the pipeline work; so no published number "
            "stands beside these."
        )
        yield tables.markdown(tables.short_table(evidence.short))
    yield "## Figures"
    yield from _figure_blocks(evidence)
    yield "## Runs"
    if evidence.runs or evidence.outdated:
        yield "Each link leads to a run's plan, provenance, history, metrics and predictions."
        yield tables.markdown(tables.run_table(evidence.runs, evidence.outdated))
    else:
        yield "None yet."
    if evidence.outdated:
        yield "*Outdated*: trained by another plan than today's `plans/`; in no table or figure above."
    yield "## Data"
    card = evidence.data_card
    yield f"Data set `{card.sha256}`; mean and standard deviation of pixels from 0 to 1."
    yield tables.markdown(data_card.split_table(card))
    yield tables.markdown(data_card.class_table(card))
    yield tables.details("Digests (sha256)", tables.markdown(data_card.digest_table(card)))


_HOW_TO_READ = (
    "Errors in percent of the test images, means over the seeds. **Last epoch** is the headline: the "
    "weights after the last step, which nothing chose; SD is its standard deviation over seeds, and the "
    "difference to the paper is this mean minus the paper's first number. **Lowest epoch** is the lowest "
    "test error of all epochs, so the test images chose it (what the first source project prints); "
    "**best-validation epoch** is the test error at the epoch that held-out training images chose (what "
    "the second prints; – where none are held out). The **verdict** is that of an equivalence test on the paper's "
    "first number, by the narrowest margin that decides ([all of them](verdicts.md)); *published spread*: how far "
    "seeds lie apart is taken from other people's runs. Lowest and best-validation epochs are as measured while "
    "training, in its precision; the last epoch is measured again, in fp32. Runs of different precision or device are "
    "never averaged."
)


_OTHERS = (
    "What the papers print besides. Each of these models is in `params.yaml`; a line under `runs` there, such as "
    "`wrn28_10-1: {model: wrn28_10, seed: 1}`, makes it a row of the tables."
)


def _verdicts_page(evidence: Evidence) -> str:
    rule = Rule.of(evidence.rows, evidence.params.verdicts)
    found = verdicts.verdicts(evidence.rows, rule)
    by_state = (
        ("What our runs decide", [one for one in found if one.decided]),
        ("Not decided yet", [one for one in found if one.num_runs and not one.decided]),
    )
    settings = rule.settings
    looks = ", ".join(map(str, settings.looks))
    early = ", ".join(settings.seen_before) or "no run"
    registered = (
        f"The rules were fixed by commit `{settings.registered}`, after {early} and before all other runs"
        if settings.registered
        else "The rules are fixed in `params.yaml`"
    )
    text = (
        "Every number that the papers and the source projects print for a row of the table. **Reproduced**: the "
        f"{rule.confidence} interval of our difference lies within the margin (two one-sided tests, alpha "
        f"{settings.alpha:g} a look, looks at {looks} runs); **not reproduced**: it lies outside; else there are "
        "**not enough runs to say**. *Published spread*: how far seeds lie apart is taken from other people's runs, "
        "updated by ours; without it one run would say nothing. The printed number is taken as exact (but for the "
        "error of reading a figure). Where one run is printed, no number of ours can tell what its authors' mean was: "
        "beside it stands how far it lies from ours, as if it were one more run. What is compared is the printed "
        "statistic: the best of five with the best of five that is expected of ours, the lowest epoch with our lowest "
        "epoch. Why these rules: [explanation](../docs/explanation.md#what-few-runs-may-say)."
    )
    blocks = [
        "# Verdicts",
        tables.WRITTEN,
        text,
        f"{registered}. {rule.check_text()} Several lines of one run are not several findings.",
    ]
    for title, part in by_state:
        if part:
            blocks += [f"## {title}", tables.markdown(verdicts.verdict_table(part, rule))]
    if waiting := [one for one in found if not one.num_runs]:
        table = verdicts.verdict_table(waiting, rule)[["model", "printed", "statistic, source"]]
        blocks += ["## Not run", tables.details(f"{len(waiting)} numbers", tables.markdown(table))]
    others = verdicts.without_row(evidence.rows, evidence.params.models)
    if len(others):
        blocks += [
            "## Printed, and not asked for here",
            _OTHERS,
            tables.details(f"{len(others)} numbers", tables.markdown(others)),
        ]
    return "\n\n".join(blocks) + "\n"


def _everybody(evidence: Evidence) -> str:
    """The figure of all numbers that are known; "" where there is no row that it shows."""
    if not evidence.full:
        return ""
    return _picture(
        REPRODUCTIONS,
        "Every number that is known, a strip for each row; each panel has a scale of its own, and the shaded bands "
        "have one width. A source project's *chosen epoch* is the one with the lowest error on the test images "
        "(a-martyn) or on images held out (Lasagne). Our intervals are those of the verdicts. "
        "[Who got what, and how](reproductions.md).",
    )


def _figure_blocks(evidence: Evidence) -> Iterator[str]:
    if any(map(figures.is_in_figure6, evidence.full)):
        yield _picture(
            "figure6",
            "Figure 6 of He et al. 2015, recreated: training error dashed, test error bold; several seeds as "
            "their mean in a band from the lowest to the highest. Triangles: where the paper's test curves "
            "end.",
        )
    if figures.figure6_rows(evidence.short):
        yield _picture(
            "figure6_short",
            "Plain and residual nets on short schedules, drawn as in Figure 6 of He et al. 2015: training "
            "error dashed, test error bold; several seeds as their mean in a band from the lowest to the "
            "highest.",
        )
    if any(row.runs for row in evidence.full):
        yield _picture("depth", "Test error against depth; hollow: as printed.")
        yield _picture("size", "Test error against parameters and against the cost of training; hollow: as printed.")
        yield tables.details(
            "Learning curves",
            _picture("curves", "Training error dashed, test error bold; triangle: the paper's number."),
        )
    yield _picture("sample_images", "Some training and test images of each class.")
    curves = [
        _picture(f"curves_{slug(row)}", f"`{row.name}`: training loss and test error.") for row in _with_curve(evidence)
    ]
    if curves:
        yield tables.details("Learning curves of the other nets", *curves)
    matrices = [
        _picture(f"confusion_{slug(row)}", f"`{row.name}`: what each class was taken for, and its error.")
        for row in _with_runs(evidence)
    ]
    if matrices:
        yield tables.details("Confusion matrices and errors per class", *matrices)


def _with_runs(evidence: Evidence) -> list[Row]:
    return [row for row in evidence.rows if row.runs]


def _with_curve(evidence: Evidence) -> list[Row]:
    """Every row with runs that neither Figure 6 shows."""
    shown = {row.name for part in (evidence.full, evidence.short) for row in figures.figure6_rows(part)}
    return [row for row in _with_runs(evidence) if row.name not in shown]


def _picture(name: str, caption: str) -> str:
    return f"![{name.replace('_', ' ')}]({FIGURES}/{name}.png)\n\n{caption} ([SVG]({FIGURES}/{name}.svg))"


def _save(figure: Figure, path: Path) -> None:
    """As PNG and SVG, with neither date nor version: the same figure gives the same bytes."""
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata=metadata)
        write_atomically(path.with_suffix(suffix), buffer.getvalue())
