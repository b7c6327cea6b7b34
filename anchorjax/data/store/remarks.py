"""Remarks about a store other than bad rows, for a preparation's summary and the store's page."""

from anchorjax.data.store.index import OLDER, Index

_SHOWN = 5  # most frequent kinds of lost characters
_ORDINARY = "source is missing or null"  # in all documents, under the default of data.source_key


def of(index: Index) -> list[tuple[str, str]]:
    """Returns (label, text) of everything that the index counts apart from bad rows."""
    found = []
    if index.trained_tokens is not None:
        share = f"{index.trained_tokens / index.num_tokens:.1%}"
        found.append(("trained", f"{index.trained_tokens:,} of {index.num_tokens:,} tokens, the assistant's: {share}"))
    if index.format == OLDER:
        found.append(("lost", "not counted by the version that prepared this store"))
    if index.marks:
        found.append(("marks", f"byte order marks removed from the beginning of files: {index.marks:,}"))
    if index.lost:
        most = sorted(index.lost, key=lambda name: (-index.lost[name], name))
        kinds = ", ".join(f"{name}: {index.lost[name]:,}" for name in most[:_SHOWN])
        total, more = sum(index.lost.values()), ", ..." if len(most) > _SHOWN else ""
        found.append(("lost", f"characters that the tokenizer loses: {total:,} ({kinds}{more})"))
    good = index.rows - sum(index.bad_rows.values())
    for reason, documents in index.lacking.items():
        if documents < good or reason != _ORDINARY:
            named = "their source is the name of their path"
            found.append(("no source", f"{reason} in {documents:,} of {good:,} rows (data.source_key); {named}"))
    if index.weighted_out:
        found.append(("weights", f"left out {index.weighted_out:,} documents"))
    return found
