"""Transforms that skip positions: one file each, with a function `positions`. They need `data.max_position`."""
