"""Layer 1: what the machine can do at most, measured and kept; nothing of traces or engines."""
