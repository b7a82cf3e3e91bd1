"""One page of what runs gave: curves, scores beside human text, paired differences, texts.

    python -m scripts.report RUN_OR_SWEEP [RUN ...] [--output_dir FOLDER] [--film_strip N]

Writes report.html, which needs nothing else, report.md, and report.json for scripts. A folder that holds runs, at any
depth, stands for all of them. What a run lacks is told on the page and on standard error.
"""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from diffusion.training.files import write_text
from scripts.composition.checks import check_writable
from scripts.job.console import note
from scripts.job.errors import USER_ERRORS, PlainParser, UsageError, run
from scripts.report.film import Frame, film_strips
from scripts.report.page import Report, markdown, numbers, page
from scripts.report.runs import found_in, read_run
from scripts.report.settings import Setting, doubts, settings_of

OF_SEVERAL = Path("saved_models/report")


def films_of(settings: list[Setting], count: int) -> tuple[dict[str, list[list[Frame]]], list[tuple[str, str]]]:
    """The film strips of the first run of each setting, and why some have none."""
    films, problems = {}, []
    for setting in settings:
        first = setting.runs[0]
        note(f"{first.path}: film strip")
        try:
            films[setting.name] = film_strips(first.path, count)
        except (*USER_ERRORS, OSError) as error:
            problems.append((first.title, f"no film strip: {error}"))
    return films, problems


def main() -> None:
    parser = PlainParser(
        prog="python -m scripts.report", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, or of several runs")
    parser.add_argument(
        "--output_dir", type=Path, help=f"where the report goes (the folder given; of several, {OF_SEVERAL})"
    )
    parser.add_argument(
        "--film_strip", type=int, default=0, metavar="N", help="show N texts of each setting on their way from noise"
    )
    options = parser.parse_args()
    if options.film_strip < 0:
        raise UsageError(f"--film_strip {options.film_strip}: expected a number of texts")
    places = list(dict.fromkeys(options.runs))
    titles, problems = found_in(places)
    folder = options.output_dir or (places[0] if len(places) == 1 else OF_SEVERAL)
    check_writable("output_dir", folder)
    runs = [read_run(path, title) for path, title in titles.items()]
    settings = settings_of(runs)
    films, without = films_of(settings, options.film_strip) if options.film_strip else (None, [])
    problems += [(each.title, message) for each in runs for message in each.problems]
    problems += doubts(settings) + without
    for what, message in problems:
        note(f"warning: {what}: {message}")
    title = places[0].absolute().name if len(places) == 1 else f"{runs[0].title} and {len(runs) - 1} more"
    report = Report(title, runs, settings, problems, films)
    written = {"report.html": page(report), "report.md": markdown(report), "report.json": numbers(report)}
    for name, content in written.items():
        write_text(folder / name, content)
        print(folder / name)


if __name__ == "__main__":
    run(main)
