"""Layer 6: two sides of one or more runs compared: what changed, and how sure that is.

``docs/diff.md`` describes the method. Must not import rich or anything above.
"""
