"""Numbers of runs into the sections of their page."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from anchorjax import figures
from anchorjax.evaluation.report import commands, drawing, values
from anchorjax.evaluation.report.reading import TITLES, Run
from anchorjax.figures import name_length
from anchorjax.page import Block, Code, Figure, Folded, Page, Paragraph, Section, Table

NONE = "–"  # in place of a number that a run does not have
PLACES = {
    "by_position": ("by place in the row", "place in the row (tokens before, at most)"),
    "by_context": ("by place in the document", "tokens of the document before, at most"),
}


def compose(runs: Sequence[Run], command: str) -> Page:
    """Raises EvaluationError for a result that is not what its script writes."""
    sections = [_summary(runs), _training(runs), _perplexity(runs), _ruler(runs), _needles(runs)]
    sections += [_scores(runs, evaluation) for evaluation in ("longppl", "longbench", "harness")]
    sections += [_rope(runs), _missing(runs), _commands(runs, command), _configurations(runs)]
    names = ", ".join(run.name for run in runs)
    return Page(names, [section for section in sections if section.blocks], _subtitle(runs))


def _subtitle(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs side by side"
    (run,) = runs
    if run.config is None:
        return "results of a Hugging Face directory"
    step = max((line["step"] for line in run.train), default=0)
    return f"a run of {step:,} steps, {'finished' if run.summary else 'not finished'}"


def _summary(runs: Sequence[Run]) -> Section:
    """All scores that are one number, and the keys of the configuration that differ."""
    rows = {
        label: [show(run.summary[key]) if values.is_number(run.summary.get(key)) else NONE for run in runs]
        for key, label, show in (
            ("step", "steps", "{:,}".format),
            ("validation_loss", "validation loss (nats per target)", "{:.4f}".format),
            ("bits_per_byte", "bits per byte", "{:.4f}".format),
            ("tokens", "tokens trained on, by the last process", "{:,}".format),
            ("tokens_per_s", "tokens/s", "{:,.0f}".format),
            ("mfu", "MFU by live pairs", "{:.1%}".format),
        )
    }
    rows["perplexity"] = [_number(run.results.get("perplexity", {}).get("perplexity")) for run in runs]
    rows |= _ruler_means(runs)
    grids = [values.needle_grid(run) for run in runs]
    rows["needles found, percent"] = [f"{grid.percent_LE.mean():.1f}" if grid else NONE for grid in grids]
    rows = {label: cells for label, cells in rows.items() if set(cells) != {NONE}}
    blocks: list[Block] = [_by_run("Scores", "score", runs, rows)] if rows else []
    trained = [run for run in runs if run.config is not None]
    if len(trained) > 1:
        found = {key: [_json(value) for value in row] for key, row in values.different(trained).items()}
        same = Paragraph("The configurations of the runs are the same.")
        blocks.append(_by_run("Keys of the configuration that differ", "key", trained, found) if found else same)
    return Section("Summary", blocks)


def _ruler_means(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Rows of means over the same tasks at the same length."""
    rows: dict[tuple[int, frozenset[str]], list[str]] = {}
    for number, run in enumerate(runs):
        scores = values.ruler_scores(run)
        for length in values.ruler_lengths(scores):
            found = {task: row[length] for task, row in scores.items() if length in row}
            row = rows.setdefault((length, frozenset(found)), [NONE] * len(runs))
            row[number] = f"{sum(found.values()) / len(found):.1f}"
    labels = [
        f"RULER at {name_length(length)}, mean of {_count(len(tasks), 'task')}, percent" for length, tasks in rows
    ]
    named = [
        f"{label} ({', '.join(sorted(tasks))})" if labels.count(label) > 1 else label
        for label, (_, tasks) in zip(labels, rows, strict=True)
    ]
    return dict(zip(named, rows.values(), strict=True))


def _training(runs: Sequence[Run]) -> Section:
    trained = [run for run in runs if run.train or run.held_out]
    drawn = drawing.losses(trained)
    if drawn is None:
        return Section("Training", [])
    ends = [f"{run.name} ends at {curve[-1]:.4f}" for run in trained if (curve := values.curve(run.train, "loss")[1])]
    caption = "Loss by step: of the batch at each logged step (thin), and of held-out text (points)."
    blocks: list[Block] = [_figure("loss", drawn, f"Lines of the loss by step; {', '.join(ends)}.", caption)]
    more = []
    for key, label in (
        ("learning_rate", "learning rate"),
        ("grad_norm", "gradient norm"),
        ("tokens_per_s", "speed (tokens/s)"),
    ):
        drawn = drawing.training(trained, key, label)
        if drawn is not None:
            more.append(_figure(key, drawn, f"Line of the {label} by step.", f"{label.capitalize()} by step."))
    return Section("Training", [*blocks, Folded("Learning rate, gradient norm and speed", more)] if more else blocks)


def _perplexity(runs: Sequence[Run]) -> Section:
    blocks: list[Block] = []
    for key, (what, x_label) in PLACES.items():
        found = {run.name: (number, values.by_place(run, key)) for number, run in enumerate(runs)}
        found = {name: pair for name, pair in found.items() if pair[1]}
        if not found:
            continue
        buckets = sorted({bucket for _, row in found.values() for bucket in row}, key=values.upper_end)
        ends = buckets[0], buckets[-1]
        alt = "; ".join(
            f"{name}: {', '.join(f'{row[bucket]:.3f} at {bucket}' for bucket in ends if bucket in row)}"
            for name, (_, row) in found.items()
        )
        caption = f"Perplexity of held-out text {what}; a point stands for the places from half its x to its x."
        blocks.append(_figure(f"perplexity_{key}", drawing.by_place(found, x_label), f"Lines: {alt}.", caption))
        rows = {bucket: [_number(values.by_place(run, key).get(bucket)) for run in runs] for bucket in buckets}
        blocks.append(Folded(f"Perplexity {what}, in numbers", [_by_run("Perplexity", "tokens before", runs, rows)]))
    return Section(TITLES["perplexity"], [*_settings(runs, "perplexity"), *blocks] if blocks else [])


def _ruler(runs: Sequence[Run]) -> Section:
    blocks, rows = [], {}
    for number, run in enumerate(runs):
        scores = values.ruler_scores(run)
        if not scores:
            continue
        alt = f"Heat map of RULER's scores of {run.name} by task and length, from 0 to 100; numbers are in a table."
        blocks.append(
            Figure(f"ruler_{number + 1}", drawing.ruler(scores, _of(runs, run)), alt, "RULER by task and length.")
        )
        for task, row in scores.items():
            for length, percent in row.items():
                cells = rows.setdefault(f"{task}, {name_length(length)}", [NONE] * len(runs))
                cells[number] = f"{percent:.1f}"
    if not blocks:
        return Section(TITLES["ruler"], [])
    table = _by_run("RULER, percent", "task, length", runs, rows)
    return Section(TITLES["ruler"], [*_settings(runs, "ruler"), *blocks, Folded("RULER in numbers", [table])])


def _needles(runs: Sequence[Run]) -> Section:
    blocks, rows = [], {}
    for number, run in enumerate(runs):
        grid = values.needle_grid(run)
        if grid is None:
            continue
        alt = f"Heat map of the needles that {run.name} found, by depth and length, {grid.percent_LE.mean():.1f} % in all."
        caption = "Needles found, by depth in the haystack and length."
        blocks.append(Figure(f"needle_{number + 1}", drawing.needles(grid, _of(runs, run)), alt, caption))
        for length, row in zip(grid.lengths, grid.percent_LE, strict=True):
            for depth, percent in zip(grid.depths, row, strict=True):
                cells = rows.setdefault(f"{name_length(length)}, {depth:g}%", [NONE] * len(runs))
                cells[number] = f"{percent:.0f}"
    if not blocks:
        return Section(TITLES["needle"], [])
    table = _by_run("Needles found, percent", "length, depth", runs, rows)
    return Section(TITLES["needle"], [*_settings(runs, "needle"), *blocks, Folded("Needles in numbers", [table])])


def _scores(runs: Sequence[Run], evaluation: str) -> Section:
    found = [values.scores(run, evaluation) for run in runs]
    keys = dict.fromkeys(key for scores in found for key in scores)
    rows = {key: [_number(scores.get(key)) for scores in found] for key in keys}
    table = [_by_run(f"Scores of {TITLES[evaluation]}", "score", runs, rows)] if rows else []
    return Section(TITLES[evaluation], [*_settings(runs, evaluation), *table] if table else [])


def _rope(runs: Sequence[Run]) -> Section:
    blocks = []
    for number, run in enumerate(runs):
        for place, (name, png) in enumerate(run.pictures):
            caption = f"{_of(runs, run)}{name}"
            blocks.append(Figure(f"rope_{number + 1}_{place + 1}", png, f"Figure {name}, of {run.name}.", caption))
    return Section(TITLES["rope_precision"], blocks)


def _settings(runs: Sequence[Run], evaluation: str) -> list[Block]:
    """How an evaluation was asked, and in what it is not what its name says."""
    results = [run.results.get(evaluation, {}) for run in runs]
    rows = {
        key: [_json(result[key]) if key in result else NONE for result in results]
        for key in ("step", "steps", *commands.OPTIONS)
    }
    rows = {key: cells for key, cells in rows.items() if set(cells) - {NONE, '""'}}
    notes = []
    for run, result in zip(runs, results, strict=True):
        material = result.get("material") or {}
        material = material if isinstance(material, dict) else {"": material}
        by_text: dict[str, list[str]] = {}
        for task, text in material.items():
            by_text.setdefault(str(text), []).append(task)
        notes += [
            f"{_of(runs, run)}{text}{f' ({tasks})' if (tasks := ', '.join(filter(None, names))) else ''}."
            for text, names in by_text.items()
        ]
    table = [Folded("How it was asked", [_by_run("Settings", "setting", runs, rows)])] if rows else []
    return [*(Paragraph(note) for note in dict.fromkeys(notes)), *table]


def _missing(runs: Sequence[Run]) -> Section:
    blocks: list[Block] = []
    for run in runs:
        missing = commands.missing(run)
        if missing:
            names = ", ".join(TITLES[evaluation] for evaluation in missing)
            blocks.append(Paragraph(f"{_of(runs, run)}no result of {names}. These commands make them:"))
            blocks.append(Code("\n".join(commands.would_make(run, evaluation) for evaluation in missing)))
    return Section("Not evaluated", blocks)


def _commands(runs: Sequence[Run], command: str) -> Section:
    blocks: list[Block] = []
    for run in runs:
        if len(runs) > 1:
            blocks.append(Paragraph(f"{run.name}:"))
        if run.config is not None and not run.commands:
            blocks.append(Paragraph("What was typed to train it was not recorded; its whole configuration is below."))
        lines = [*run.commands, *(commands.made(run, evaluation) for evaluation in run.results)]
        if lines:
            blocks.append(Code("\n".join(lines)))
    return Section("Commands", [*blocks, Paragraph("This page:"), Code(command)])


def _configurations(runs: Sequence[Run]) -> Section:
    blocks = []
    for run in runs:
        if run.config is not None:
            rows = [(key, _json(value)) for key, value in values.flat(run.config).items()]
            blocks.append(
                Folded(f"Every key of {run.name}", [Table(str(run.path / "config.json"), ("key", "value"), rows)])
            )
    return Section("Configuration", blocks)


def _by_run(caption: str, head: str, runs: Sequence[Run], rows: Mapping[str, Sequence[str]]) -> Table:
    return Table(caption, (head, *(run.name for run in runs)), [(label, *cells) for label, cells in rows.items()])


def _figure(name: str, drawn: "figures.Figure", alt: str, caption: str) -> Figure:
    return Figure(name, figures.png(drawn), alt, caption)


def _of(runs: Sequence[Run], run: Run) -> str:
    """What a title begins with on a page of several runs."""
    return f"{run.name}: " if len(runs) > 1 else ""


def _number(value: Any) -> str:
    if not values.is_number(value):
        return NONE
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
