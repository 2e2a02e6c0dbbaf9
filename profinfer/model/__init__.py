"""Layer 5: records get meaning: calls, graphs, nodes, operators."""
