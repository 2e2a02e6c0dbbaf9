"""Layer 7: Results and Traces become text, JSON, timelines."""
