"""DVC's plot page for a machine without network: DVC's own page loads Vega from the web, this one brings it along."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import vl_convert

from resnet_repro.errors import ReproError
from resnet_repro.evidence import write_atomically

TEMPLATE = Path(".dvc/tmp/plots_page.html")
FOLDER = "dvc_plots"

# What DVC's plots call. Without `$schema`, since Vega would complain of its age, and without the menu's links to
# Vega's editor, which lead into the web.
EMBED = """
const actions = {export: true, source: false, compiled: false, editor: false};
window.vegaEmbed = (element, {$schema, ...plot}) =>
  vegaEmbed(element, plot, {mode: "vega-lite", renderer: "svg", actions});
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Plots</title>
<style>
body { font: 13px sans-serif; margin: 2em; }
img { max-width: 100%; }
</style>
<script>BUNDLE</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def page() -> str:
    """The page as DVC wants it, with Vega in it and `{plot_divs}` where the plots go; some 900 kB."""
    return PAGE.replace("BUNDLE", vl_convert.javascript_bundle(EMBED))


def show_plots(root: Path, targets: Sequence[str] = (), revisions: Sequence[str] = (), browse: bool = False) -> int:
    """Let DVC write its plot page, which then needs no network; DVC prints where it is. Returns DVC's exit status.

    Args:
        root: of the repository; the page goes to its folder FOLDER.
        targets: files or names of plots; none: all that dvc.yaml names.
        revisions: overlays the plots of these Git revisions or experiments; none: the plots of the workspace.
        browse: open the page in a browser, too.

    Raises:
        ReproError: `root` is not the root of a DVC repository, or there is no such plot.
    """
    if not (root / ".dvc").is_dir():
        raise ReproError(f"there is no .dvc in {root.absolute()}: run this in the repository's root")
    write_atomically(root / TEMPLATE, page().encode())
    written = root / FOLDER / "index.html"
    written.unlink(missing_ok=True)
    named = ["--targets", *targets] if revisions and targets else [*targets]
    command = ["diff", *revisions, *named] if revisions else ["show", *named]
    options = ["--html-template", str(TEMPLATE), "--out", FOLDER, *(["--open"] if browse else [])]
    # options first: `--targets` takes all that follows
    command[1:1] = options
    status = subprocess.run([sys.executable, "-m", "dvc", "plots", *command], cwd=root, check=False).returncode
    body = written.read_text().rpartition("</head>")[2] if written.is_file() else ""
    if not status and '"values"' not in body and "<img" not in body:  # DVC writes a page of nothing and is content
        names = ", ".join(targets) or "any name"
        raise ReproError(f"DVC finds no plot called {names} there: dvc.yaml lists the plots, under `plots`")
    return status
