"""Layer 8: the command line. One file a verb; joins the layers, decides nothing.

The verbs are imported when they are called, so that ``profinfer --help`` and the
offline verbs never load bcc.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from profinfer._version import __version__
from profinfer.cli.allocator import keep_freed_memory
from profinfer.errors import ProfinferError

# verb -> one line for --help; the module profinfer.cli.<verb> has a click command `command`.
VERBS = {
    "record": "Record a ggml program into a trace file.",
    "top": "Watch a program while it runs.",
    "report": "Print what a trace says.",
    "scaling": "Compare the same work with more and more threads.",
    "diff": "Print what changed between two runs, and how sure that is.",
    "export": "Write a timeline that ui.perfetto.dev opens.",
    "view": "Show the timeline at ui.perfetto.dev, in your browser.",
    "graph": "Show the graph of operators: layers, critical path, a drawing.",
    "info": "Print where, when and how a trace was recorded.",
    "dump": "Print the raw records of a trace, one a line.",
    "probes": "Show which probes a program would get, and why.",
    "calibrate": "Measure this machine's memory bandwidth and compute peaks.",
    "doctor": "Check whether this machine can record.",
}

# They hold whole traces in memory.
_ANALYSES = ("report", "scaling", "diff", "export", "view", "graph")


class LazyGroup(click.Group):
    """A group that imports a verb's module only when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of a first session."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import ``profinfer.cli.<verb>``."""
        if cmd_name not in VERBS:
            return None
        if cmd_name in _ANALYSES:
            keep_freed_memory()
        command = importlib.import_module(f"profinfer.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="profinfer")
def group() -> None:
    """See what an LLM inference really does.

    Every token, graph, operator and thread of an unmodified llama.cpp, or any ggml program.
    """


def run(entry: Callable[..., Any], args: list[str] | None = None) -> int:
    """Run a click command and turn every expected failure into one clear line.

    Returns the exit status; never raises for an error the user can act on.
    """
    try:
        status = entry(args=args, prog_name="profinfer", standalone_mode=False)
    except ProfinferError as error:
        click.echo(f"profinfer: {error.message}", err=True)
        if error.hint:
            click.echo(f"  try: {error.hint}", err=True)
        return error.exit_code
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        click.echo("profinfer: interrupted", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # The reader went away (`profinfer report x.pf | head`): not an error of ours.
        sys.stdout = None
        return 141
    except Exception as error:
        # A mistake of ours: one line all the same, and the way to see where.
        if os.environ.get("PROFINFER_DEBUG"):
            raise
        click.echo(f"profinfer: internal error: {type(error).__name__}: {error}", err=True)
        click.echo("  try: PROFINFER_DEBUG=1 shows where; please report it", err=True)
        return 70
    return status if isinstance(status, int) else 0


def main() -> None:
    """Console entry point."""
    sys.exit(run(group))
