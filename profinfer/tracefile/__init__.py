"""Layer 3: the .pf file. Knows bytes, not meaning."""
