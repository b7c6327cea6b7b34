"""A section for each evaluation that some run has a result of."""

from collections.abc import Callable, Mapping, Sequence

from anchorjax import figures
from anchorjax.evaluation.report import cells, commands, drawing, values
from anchorjax.evaluation.report.reading import TITLES, Run
from anchorjax.figures import name_length
from anchorjax.page import Block, Figure, Folded, Paragraph, Section, Side

PLACES = {
    "by_position": ("by place in the row", "tokens of the row before, at most"),
    "by_context": ("by place in the document", "tokens of the document before, at most"),
}
TEXT_SCORES = {"perplexity": "", "last_perplexity": ", last tokens", "bits_per_byte": ", bits per byte"}


def sections(runs: Sequence[Run]) -> list[Section]:
    """Raises EvaluationError for a result that is not what its script writes."""
    writers: dict[str, Callable[[Sequence[Run]], Sequence[Block]]] = {
        "perplexity": _perplexity,
        "perplexity_text": _perplexity_of_texts,
        "ruler": _ruler,
        "needle": _needles,
        "rope_precision": _rope,
    }
    found = []
    for evaluation, title in TITLES.items():
        blocks = writers[evaluation](runs) if evaluation in writers else _scores(runs, evaluation)
        if blocks:
            found.append(Section(title, [*_notes(runs, evaluation), *blocks, *_settings(runs, evaluation)]))
    return found


def _perplexity(runs: Sequence[Run]) -> list[Block]:
    blocks: list[Block] = []
    for key, (what, x_label) in PLACES.items():
        found = {number: values.by_place(run, key) for number, run in enumerate(runs)}
        blocks += _by_place(runs, found, f"perplexity_{key}", f"Perplexity of held-out text {what}", x_label)
    return blocks


def _perplexity_of_texts(runs: Sequence[Run]) -> list[Block]:
    by_length = [values.text_perplexity(run) for run in runs]
    rows: dict[str, list[str]] = {}
    for number, found in enumerate(by_length):
        for length, one in found.items():
            for key, label in TEXT_SCORES.items():
                if key in one:
                    cells.put(rows, f"{name_length(length)}{label}", runs, number, cells.number(one[key]))
    longest = {number: found[max(found)].get("by_position", {}) for number, found in enumerate(by_length) if found}
    caption = "Perplexity of the longest texts by place"
    blocks = _by_place(runs, longest, "perplexity_of_texts", caption, "tokens of the text before, at most")
    return [cells.by_run("Perplexity by length of the text", "length", runs, rows), *blocks] if rows else blocks


def _by_place(
    runs: Sequence[Run], found: Mapping[int, Mapping[str, float]], name: str, what: str, x_label: str
) -> list[Block]:
    """A figure and its numbers. `found` has perplexities by bucket of the runs of these numbers."""
    found = {number: row for number, row in found.items() if row}
    if not found:
        return []
    buckets = sorted({bucket for row in found.values() for bucket in row}, key=values.upper_end)
    ends = {number: [bucket for bucket in (buckets[0], buckets[-1]) if bucket in row] for number, row in found.items()}
    alt = "; ".join(
        f"{runs[number].name}: " + ", ".join(f"{row[bucket]:.3f} at {bucket}" for bucket in ends[number])
        for number, row in found.items()
    )
    figure = figures.png(drawing.by_place({number: (runs[number].name, row) for number, row in found.items()}, x_label))
    rows = {bucket: [cells.number(found.get(n, {}).get(bucket)) for n in range(len(runs))] for bucket in buckets}
    return [
        Figure(name, figure, f"Lines of perplexity: {alt}.", f"{what}; a point stands for the places just before it."),
        Folded("In numbers", [cells.by_run(what, "tokens before", runs, rows)]),
    ]


def _ruler(runs: Sequence[Run]) -> list[Block]:
    maps: list[Figure] = []
    rows: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        scores = values.ruler_scores(run)
        if not scores:
            continue
        png = drawing.ruler(scores, run.name if len(runs) > 1 else "")
        alt = f"Heat map of the scores of {run.name} by task and length; they are also in the table behind it."
        caption = cells.about(runs, run, "percent of what RULER's tasks ask for, by task and length.")
        maps.append(Figure(f"ruler_{number + 1}", png, alt, caption))
        for task, row in scores.items():
            for length, percent in row.items():
                cells.put(rows, f"{task}, {name_length(length)}", runs, number, f"{percent:.1f}")
    return [Side(maps), Folded("In numbers", [cells.by_run("Percent", "task, length", runs, rows)])] if maps else []


def _needles(runs: Sequence[Run]) -> list[Block]:
    maps: list[Figure] = []
    rows: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        grid = values.needle_grid(run)
        if grid is None:
            continue
        mean = f"{grid.percent_LE.mean():.1f} in all"
        alt = f"Heat map of the needles that {run.name} found, by depth and length: {mean}."
        caption = cells.about(runs, run, f"percent of the needles found, by depth and length; {mean}.")
        png = drawing.needles(grid, run.name if len(runs) > 1 else "")
        maps.append(Figure(f"needle_{number + 1}", png, alt, caption))
        for length, row in zip(grid.lengths, grid.percent_LE, strict=True):
            for depth, percent in zip(grid.depths, row, strict=True):
                cells.put(rows, f"{name_length(length)}, {depth:g}%", runs, number, f"{percent:.0f}")
    return [Side(maps), Folded("In numbers", [cells.by_run("Percent", "length, depth", runs, rows)])] if maps else []


def _scores(runs: Sequence[Run], evaluation: str) -> list[Block]:
    rows: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        for label, score in values.scores(run, evaluation).items():
            cells.put(rows, label, runs, number, cells.number(score))
    return [cells.by_run("Scores", "score", runs, rows)] if rows else []


def _rope(runs: Sequence[Run]) -> list[Block]:
    return [
        Figure(
            f"rope_{number + 1}_{place + 1}",
            png,
            f"Figure {name} of the precision of RoPE in {run.name}.",
            cells.about(runs, run, name),
        )
        for number, run in enumerate(runs)
        for place, (name, png) in enumerate(run.pictures)
    ]


def _notes(runs: Sequence[Run], evaluation: str) -> list[Block]:
    """In what the material of an evaluation is not what its name says: of which tasks, in which runs."""
    notes: dict[str, list[str]] = {}
    for run in runs:
        material = run.results.get(evaluation, {}).get("material") or {}
        tasks: dict[str, list[str]] = {}
        for task, text in material.items() if isinstance(material, dict) else [("", material)]:
            tasks.setdefault(str(text), []).append(task)
        for text, names in tasks.items():
            note = f"{text} ({', '.join(names)})" if any(names) else text
            notes.setdefault(note, []).append(run.name)
    return [Paragraph(f"{', '.join(names)}: {note}." if len(runs) > 1 else f"{note}.") for note, names in notes.items()]


def _settings(runs: Sequence[Run], evaluation: str) -> list[Block]:
    """How an evaluation was asked."""
    results = [run.results.get(evaluation, {}) for run in runs]
    rows = {
        key: [cells.plain(result[key]) if result.get(key) not in (None, "") else cells.NONE for result in results]
        for key in ("step", "steps", *commands.OPTIONS)
        if not any(isinstance(result.get(key), dict) for result in results)
    }
    rows = {key: row for key, row in rows.items() if set(row) != {cells.NONE}}
    return [Folded("How it was asked", [cells.by_run("Settings", "setting", runs, rows)])] if rows else []
