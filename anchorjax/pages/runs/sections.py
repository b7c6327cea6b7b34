"""A section for each evaluation that some run has a result of."""

import functools
from collections.abc import Callable, Mapping, Sequence

from anchorjax.pages import figures
from anchorjax.pages.figures import name_length
from anchorjax.pages.page import Block, Figure, Folded, Paragraph, Section, Side
from anchorjax.pages.runs import cells, drawing, values
from anchorjax.pages.runs.reading import TITLES, Run

PLACES = {
    "by_position": ("by place in the row", "tokens of the row before, at most"),
    "by_context": ("by place in the document", "tokens of the document before, at most"),
}
TEXT_SCORES = {
    "perplexity": "perplexity",
    "last_perplexity": "perplexity of the last tokens",
    "bits_per_byte": "bits per byte",
    "documents": "documents",
}
LONGPPL_SCORES = {
    "longppl": "LongPPL",
    "perplexity": "perplexity",
    "key_share": "share of key tokens",
    "documents": "documents",
}
# What the pictures of eval/rope_precision.py show, by the names of their files.
ROPE_PICTURES = {
    "shifts": "Deviation of attention by how far positions are shifted",
    "lengths": "Deviation of attention by length of the row",
    "logits": "Deviation of the first key's logits by length of the row",
    "keys": "Share of each key in the deviation of attention",
    "tables": "Error of the cosines themselves by position",
}


def sections(runs: Sequence[Run]) -> list[Section]:
    """Raises EvaluationError for a result that is not what its script writes."""
    writers: dict[str, Callable[[Sequence[Run]], Sequence[Block]]] = {
        "perplexity": _perplexity,
        "perplexity_text": _perplexity_of_texts,
        "longppl": _longppl,
        "ruler": _ruler,
        "needle": _needles,
        "longbench": _longbench,
        "harness": _harness,
        "rope_precision": _rope,
    }
    others = sorted({evaluation for run in runs for evaluation in run.results} - TITLES.keys())
    found = []
    for evaluation, title in (TITLES | {name: name for name in others}).items():
        blocks = writers.get(evaluation, functools.partial(_numbers, evaluation=evaluation))(runs)
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
    longest = {number: found[max(found)].get("by_position", {}) for number, found in enumerate(by_length) if found}
    caption = "Perplexity of the longest texts by place"
    blocks = _by_place(runs, longest, "perplexity_of_texts", caption, "tokens of the text before, at most")
    return [*_by_length(runs, by_length, TEXT_SCORES), *blocks]


def _longppl(runs: Sequence[Run]) -> list[Block]:
    return _by_length(runs, [values.by_length(run, "longppl") for run in runs], LONGPPL_SCORES)


def _by_length(
    runs: Sequence[Run], found: Sequence[Mapping[int, Mapping[str, float]]], labels: Mapping[str, str]
) -> list[Block]:
    rows: dict[str, list[str]] = {}
    for length in sorted({length for one in found for length in one}):
        for key, label in labels.items():
            for number, one in enumerate(found):
                if key in one.get(length, {}):
                    cells.put(rows, f"{name_length(length)}: {label}", runs, number, cells.number(one[length][key]))
    return [cells.by_run("Scores by length of the text", "length: score", runs, rows)] if rows else []


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


def _longbench(runs: Sequence[Run]) -> list[Block]:
    rows: dict[str, list[str]] = {}
    for key, form in (("scores", "{}"), ("averages", "mean: {}")):
        for number, run in enumerate(runs):
            for label, score in values.leaves(run, "longbench", key).items():
                cells.put(rows, form.format(label), runs, number, f"{score:.2f}")
    return [cells.by_run("Percent", "task", runs, rows)] if rows else []


def _harness(runs: Sequence[Run]) -> list[Block]:
    rows: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        for label, (score, error) in values.lm_eval(run).items():
            cells.put(rows, label, runs, number, cells.number(score) + ("" if error is None else f" ± {error:.4f}"))
    return [cells.by_run("Scores, with their standard errors", "task and metric", runs, rows)] if rows else []


def _rope(runs: Sequence[Run]) -> list[Block]:
    blocks: list[Block] = []
    for number, run in enumerate(runs):
        for place, (name, png) in enumerate(run.pictures):
            kind, dash, variant = name.partition("-")
            by_layout = f"Deviation of attention by length of the row and layout of its documents, {variant}"
            text = by_layout if kind == "layouts" and dash else ROPE_PICTURES.get(name, name)
            alt = f"{text}, of {run.name}."
            blocks.append(Figure(f"rope_{number + 1}_{place + 1}", png, alt, cells.about(runs, run, f"{text}.")))
    return blocks


def _numbers(runs: Sequence[Run], evaluation: str) -> list[Block]:
    """A table of the scores in the result of a task that has no section of its own."""
    rows: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        for label, score in values.scores(run, evaluation).items():
            cells.put(rows, label, runs, number, cells.number(score))
    return [cells.by_run("Scores", "score", runs, rows)] if rows else []


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
        for note in run.results.get(evaluation, {}).get("notes") or []:
            notes.setdefault(str(note), []).append(run.name)
    whose = {note: f"{', '.join(names)}: " if len(runs) > 1 else "Note: " for note, names in notes.items()}
    return [Paragraph(f"{names}{note}.") for note, names in whose.items()]


def _settings(runs: Sequence[Run], evaluation: str) -> list[Block]:
    """How an evaluation was asked, and of which checkpoint."""
    rows: dict[str, list[str]] = {}
    for number, run in enumerate(runs):
        result = run.results.get(evaluation, {})
        steps = {key: result[key] for key in ("step", "steps") if result.get(key) is not None}
        for key, value in (steps | values.settings(run, evaluation)).items():
            cells.put(rows, key, runs, number, cells.plain(value))
    return [Folded("How it was asked", [cells.by_run("Settings", "setting", runs, rows)])] if rows else []
