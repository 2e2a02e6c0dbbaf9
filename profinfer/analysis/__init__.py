"""Layer 6: pure functions from a Trace to Results."""
