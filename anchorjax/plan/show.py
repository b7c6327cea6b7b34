"""A plan as text. Each section says whether its figures were compiled, counted or modelled."""

from collections.abc import Iterator

from anchorjax.data.rows import window_schedule
from anchorjax.plan import planner
from anchorjax.plan.command import flags
from anchorjax.plan.planner import Plan
from anchorjax.plan.remedies import Attempt
from anchorjax.plan.trial import Trial

SMALL = 1e-4  # share of a step below which a part of it is not shown; --json has them all


def text(plan: Plan) -> str:
    sections = [head(plan), memory(plan), tokens(plan), documents(plan)]
    if plan.contenders:
        sections.insert(1, contenders(plan))
    if plan.attempts:
        sections.insert(1, attempts(plan))
    if plan.exchanged:
        sections.append(exchanged(plan))
    if plan.fits:
        sections += time(plan), run(plan), launch(plan)
    return "\n\n".join("\n".join(section) for section in sections)


def head(plan: Plan) -> Iterator[str]:
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.chosen.mesh.shape.items() if size > 1) or "one device"
    kind = plan.hardware.device_kind
    yield f"{plan.target}: {several(plan.devices, 'device')} ({kind}), mesh {mesh}"
    if plan.first.fits:
        yield "It fits."
        if plan.chosen.changes:
            yield f"The fastest that was found has {' '.join(flags(plan.chosen.changes))}"
    elif plan.fits:
        yield f"It does not fit as given. It fits with {' '.join(flags(plan.chosen.changes))}"
    else:
        yield "It does not fit, and no change that was tried makes it fit."


def memory(plan: Plan) -> Iterator[str]:
    yield f"Memory of one device{_with_changes(plan)} (compiled)"
    for kind, count in (planner.by_kind(plan.chosen.memory) or {}).items():
        yield f"  {kind.replace('_', ' '):<18}{size(count):>9}"
    yield f"  {'total':<18}{_need(plan.chosen)}"


def attempts(plan: Plan) -> Iterator[str]:
    yield "What was tried, in this order (compiled)"
    yield f"  {'as given':<14}{_need(plan.first)}"
    for attempt in plan.attempts:
        yield f"  {attempt.remedy:<14}{_attempt(attempt)}"


def contenders(plan: Plan) -> Iterator[str]:
    yield "The best of the search (memory compiled, step modelled; in brackets by estimate)"
    yield f"  as given{_need(plan.first)}"
    for one in plan.contenders:
        trial, estimated = one.timed.trial, one.candidate
        step = duration(one.timed.seconds) if one.timed.time else "does not fit"
        yield (
            f"  {step} ({duration(estimated.time.seconds)}), {size(trial.hbm_bytes)} "
            f"({size(estimated.memory.total)}); {' '.join(flags(trial.changes)) or 'as given'}"
        )


def tokens(plan: Plan) -> Iterator[str]:
    data, accumulation = plan.chosen.config.data, plan.chosen.config.train.grad_accum_steps
    parts = f", in {accumulation} micro-batches" if accumulation > 1 else ""
    yield "A step (counted)"
    yield f"  {plan.tokens:,} tokens: {several(data.batch_size, 'row')} of {data.seq_len:,}{parts}"


def documents(plan: Plan) -> Iterator[str]:
    found, shards = plan.documents, plan.chosen.mesh.shape["context"]
    yield f"Documents (counted in {found.rows:,} rows)"
    yield f"  {'lengths':<14}{found.source}"
    yield (
        f"  {'tokens of one':<14}mean {found.mean_length:,.0f}, median {found.median_length:,.0f}, "
        f"longest {found.longest:,}"
    )
    yield f"  {'a row':<14}{found.documents_per_row:,.1f} documents, {found.fill:.1%} filled"
    yield (
        f"  {'live tiles':<14}{found.live_ratio:.1%} of the {found.causal_tiles:,} tiles of {found.q_tile} x "
        f"{found.kv_tile} of one long document (standard error {found.live_ratio_error:.1%})"
    )
    if found.scheduled_live_ratio is not None:
        yield (
            f"  {'windows':<14}{found.scheduled_live_ratio:.1%} of the tiles on average over the run "
            f"({window_schedule.describe(plan.chosen.config.data)}); all other numbers here are of whole rows"
        )
    if shards > 1:
        layout = plan.chosen.config.mesh.context_layout
        yield (
            f"  {'imbalance':<14}the busiest of {shards} devices that share a row has {found.imbalance:.2f} times the "
            f"mean (mesh.context_layout={layout}; {found.imbalance_contiguous:.2f} in the row's own order)"
        )
    yield f"  {'waiting':<14}attention of a batch takes {found.batch_wait:.2f} times as long as that of even rows"


def exchanged(plan: Plan) -> Iterator[str]:
    by_formula = plan.exchanged_by_formula
    source = "compiled, a ring's by formula" if plan.chosen.config.mesh.context_strategy == "ring" else "compiled"
    yield f"What a device receives from others in a step, by axis of the mesh ({source}; by formula)"
    for axes in plan.exchanged | by_formula:
        yield f"  {axes:<18}{size(plan.exchanged.get(axes, 0)):>9}; {size(by_formula.get(axes, 0))}"
    yield f"  {'total':<18}{size(sum(plan.exchanged.values())):>9}; {size(sum(by_formula.values()))}"


def time(plan: Plan) -> Iterator[str]:
    made = plan.time
    yield "Time of a step (modelled, apart from what is marked as compiled)"
    for part in sorted(made.parts, key=lambda part: -part.seconds):
        hidden = f", {duration(part.hidden)} in all" if part.hidden else ""
        label = " (compiled)" if part.source == "compiled" else ""
        if part.seconds + part.hidden > SMALL * made.seconds:
            yield f"  {duration(part.seconds):>9}  {part.name}: {part.how}{hidden}{label}"
    yield (
        f"  {duration(made.seconds):>9}  in all; {duration(made.low)} if all exchanges ran beside computation, "
        f"{duration(made.high)} if none did"
    )
    yield (
        f"  MFU {made.mfu:.1%} by the visible pairs; {made.mfu_causal:.1%} in the usual count, which takes each row "
        "as one document"
    )
    yield "  Assumptions:"
    yield from (f"  - {line}" for line in made.assumptions)


def run(plan: Plan) -> Iterator[str]:
    cost, tokens = plan.cost, plan.steps * plan.tokens
    price = "" if cost.price is None else f", {cost.price:,.2f} at {plan.price:g} a chip-hour"
    yield "The run (modelled), without evaluations, saves and restarts"
    yield (
        f"  {plan.steps:,} steps, {tokens:,} tokens, {tokens / plan.steps / plan.time.seconds:,.0f} tokens a second: "
        f"{cost.hours:,.2f} hours, {cost.chip_hours:,.1f} chip-hours{price}"
    )


def launch(plan: Plan) -> Iterator[str]:
    yield "To start it (docs/running.md)"
    yield from plan.launch.splitlines()


def _need(trial: Trial) -> str:
    hardware, verdict = trial.hardware, "fits" if trial.fits else "does not fit"
    host = f" and {size(trial.host_bytes)} of {size(hardware.host_bytes)} of the host" if trial.host_bytes else ""
    return f"{size(trial.hbm_bytes):>9} of {size(hardware.hbm_bytes)}{host}: {verdict}"


def _with_changes(plan: Plan) -> str:
    return " with these changes" if plan.chosen.changes else ""


def _attempt(attempt: Attempt) -> str:
    if attempt.estimated:
        needed = size(attempt.estimated.total)
        host = f" and {size(attempt.estimated.host)} of the host" if attempt.estimated.host else ""
        return f"{needed:>9} by estimate{host}: not compiled; {' '.join(flags(attempt.changes))}"
    if attempt.trial is None:
        return f"not tried: {attempt.why_not}"
    return f"{_need(attempt.trial)}; {' '.join(flags(attempt.trial.changes))}"


def several(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


def size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
