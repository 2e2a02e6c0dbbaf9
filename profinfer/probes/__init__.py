"""Layer 2: what is probed, and where."""
