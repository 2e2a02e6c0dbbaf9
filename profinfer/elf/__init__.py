"""Layer 1: what an ELF file holds: symbols, tables, instructions."""
