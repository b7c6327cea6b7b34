"""Numbers of runs into their page."""

from collections.abc import Sequence

from anchorjax.pages import figures
from anchorjax.pages.figures import name_length
from anchorjax.pages.page import Block, Code, Figure, Folded, Page, Paragraph, Section, Table
from anchorjax.pages.runs import cells, drawing, values
from anchorjax.pages.runs.reading import TITLES, Run
from anchorjax.pages.runs.sections import sections
from anchorjax.pages.runs.suggestions import STANDS, suggestion

SUMMARY = (
    ("step", "steps", "{:,}"),
    ("validation_loss", "validation loss (nats per target)", "{:.4f}"),
    ("bits_per_byte", "bits per byte", "{:.4f}"),
    ("tokens", "tokens since the last start", "{:,}"),
    ("tokens_per_s", "tokens/s", "{:,.0f}"),
    ("mfu", "MFU by live pairs", "{:.1%}"),
)
CURVES = (("learning_rate", "learning rate"), ("grad_norm", "gradient norm"), ("tokens_per_s", "speed (tokens/s)"))


def compose(runs: Sequence[Run], command: str) -> Page:
    """Raises EvaluationError for a result that is not what its script writes."""
    for run in runs:
        values.check(run)
    parts = [_summary(runs), _training(runs), *sections(runs)]
    parts += [_missing(runs), _commands(runs, command), _configurations(runs)]
    return Page(", ".join(run.name for run in runs), [part for part in parts if part.blocks], _subtitle(runs))


def _subtitle(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} models side by side"
    (run,) = runs
    if run.config is None:
        return "results of a Hugging Face directory"
    step = max((line["step"] for line in run.train), default=0)
    return f"a run of {step:,} steps, {'finished' if run.summary else 'not finished'}"


def _summary(runs: Sequence[Run]) -> Section:
    """All scores that are one number, and the keys of the configuration that differ."""
    rows: dict[str, list[str]] = {}
    for key, label, form in SUMMARY:
        for number, run in enumerate(runs):
            if values.is_number(run.summary.get(key)):
                cells.put(rows, label, runs, number, form.format(run.summary[key]))
    for number, run in enumerate(runs):
        if "perplexity" in run.results.get("perplexity", {}):
            cells.put(rows, "perplexity", runs, number, cells.number(run.results["perplexity"]["perplexity"]))
    for number, run in enumerate(runs):
        for label, mean in _ruler_means(run).items():
            cells.put(rows, label, runs, number, f"{mean:.1f}")
    for number, run in enumerate(runs):
        for length, one in values.by_length(run, "longppl").items():
            cells.put(rows, f"LongPPL at {name_length(length)}", runs, number, cells.number(one.get("longppl")))
        grid = values.needle_grid(run)
        if grid is not None:
            cells.put(rows, "needles found, percent", runs, number, f"{grid.percent_LE.mean():.1f}")
    blocks: list[Block] = [cells.by_run("Scores", "score", runs, rows)] if rows else []
    trained = [run for run in runs if run.config is not None]
    if len(trained) > 1:
        keys = {key: [cells.plain(value) for value in row] for key, row in values.different(trained).items()}
        same = Paragraph("The configurations are the same.")
        blocks.append(cells.by_run("Keys of the configuration that differ", "key", trained, keys) if keys else same)
    return Section("Summary", blocks)


def _ruler_means(run: Run) -> dict[str, float]:
    """By length; the label tells the tasks, as means over others are not to be compared."""
    scores = values.ruler_scores(run)
    means = {}
    for length in values.ruler_lengths(scores):
        found = {task: row[length] for task, row in scores.items() if length in row}
        tasks = f"mean of {len(found)} tasks" if len(found) > 3 else ", ".join(sorted(found))
        means[f"RULER at {name_length(length)} ({tasks}), percent"] = sum(found.values()) / len(found)
    return means


def _training(runs: Sequence[Run]) -> Section:
    trained = [run for run in runs if run.config is not None]
    drawn = drawing.losses(trained)
    if drawn is None:
        return Section("Training", [])
    curves = {run.name: values.curve(run.train, "loss")[1] for run in trained}
    ends = ", ".join(f"{name} ends at {curve[-1]:.4f}" for name, curve in curves.items() if curve)
    caption = "Loss by step: of training, as the mean of each logging interval (thin), and of held-out text (points)."
    blocks: list[Block] = [Figure("loss", figures.png(drawn), f"Lines of the loss by step; {ends}.", caption)]
    more: list[Block] = []
    for key, label in CURVES:
        drawn = drawing.training(trained, key, label)
        if drawn is not None:
            caption = f"{label.capitalize()} by step."
            more.append(Figure(key, figures.png(drawn), f"Line of the {label} by step.", caption))
    return Section("Training", [*blocks, Folded("Learning rate, gradient norm and speed", more)] if more else blocks)


def _missing(runs: Sequence[Run]) -> Section:
    blocks: list[Block] = []
    for run in runs:
        missing = [key for key in TITLES if key not in run.results and (run.config or key != "perplexity")]
        if missing:
            names = ", ".join(TITLES[evaluation] for evaluation in missing)
            blocks.append(
                Paragraph(cells.about(runs, run, f"there is no result of {names}. These commands make them:"))
            )
            blocks.append(Code("\n".join(suggestion(run, evaluation) for evaluation in missing)))
    blocks += [Paragraph(STANDS)] if blocks else []
    return Section("Not evaluated", blocks)


def _commands(runs: Sequence[Run], command: str) -> Section:
    blocks: list[Block] = []
    for run in runs:
        if len(runs) > 1:
            blocks.append(Paragraph(f"{run.name}:"))
        if run.config is not None and not run.commands:
            blocks.append(Paragraph("What was typed to train it was not recorded; its whole configuration is below."))
        lines = [*run.commands, *(line for result in run.results.values() for line in result.get("commands", ()))]
        if lines:
            blocks.append(Code("\n".join(lines)))
    return Section("Commands", [*blocks, Paragraph("This page:"), Code(command)])


def _configurations(runs: Sequence[Run]) -> Section:
    blocks = []
    for run in runs:
        if run.config is not None:
            rows = [(key, cells.plain(value)) for key, value in values.flat(run.config).items()]
            table = Table(str(run.path / "config.json"), ("key", "value"), rows)
            blocks.append(Folded(f"Every key of {run.name}", [table]))
    return Section("Configuration", blocks)
