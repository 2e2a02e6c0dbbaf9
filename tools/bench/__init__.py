"""Measures what profinfer costs. A tool of the checkout, no part of the package."""
