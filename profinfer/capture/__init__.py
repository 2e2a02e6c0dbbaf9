"""Layer 4: the only privileged layer: load, attach, launch, drain."""
