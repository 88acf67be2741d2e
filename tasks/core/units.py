"""Units that are counted in bytes."""

GIB = 1 << 30
