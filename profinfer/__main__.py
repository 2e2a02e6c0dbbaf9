"""``python -m profinfer``."""

from profinfer.cli import main

if __name__ == "__main__":
    main()
