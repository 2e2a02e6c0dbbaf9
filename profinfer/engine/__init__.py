"""Layer 1: what is known of ggml engines, as data with its evidence."""
