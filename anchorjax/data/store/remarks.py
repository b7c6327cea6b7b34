"""What a store's index says beside its bad rows, for the summary of a preparation and the page about the store."""

from anchorjax.data.store.index import OLDER, Index

_SHOWN = 5  # kinds of what is lost
_ORDINARY = "source is missing or null"  # in all documents, under the default of data.source_key


def of(index: Index) -> list[tuple[str, str]]:
    """(label, text) of everything that the index counts apart from bad rows."""
    found = []
    if index.format == OLDER:
        found.append(("lost", "not counted by the version that prepared this store"))
    if index.marks:
        found.append(("marks", f"left out at the beginning of files (byte order marks): {index.marks:,}"))
    if index.lost:
        most = sorted(index.lost, key=lambda name: (-index.lost[name], name))
        kinds = ", ".join(f"{name}: {index.lost[name]:,}" for name in most[:_SHOWN])
        total, more = sum(index.lost.values()), ", ..." if len(most) > _SHOWN else ""
        found.append(("lost", f"what the tokenizer does not give back of the texts: {total:,} ({kinds}{more})"))
    good = index.rows - sum(index.bad_rows.values())
    for reason, documents in index.lacking.items():
        if documents < good or reason != _ORDINARY:
            named = "these documents take the name of their path as source"
            found.append(("no source", f"{reason} in {documents:,} of {good:,} rows (data.source_key); {named}"))
    if index.weighted_out:
        found.append(("weights", f"left out {index.weighted_out:,} documents"))
    return found
