"""The command line of a benchmark: what the user can mend is one line, as with `edge-gemma`."""

from __future__ import annotations

from typing import Any

import click

from edge_gemma.errors import EdgeGemmaError


class Benchmark(click.Command):
    """A command that ends with the message and the exit status of an EdgeGemmaError."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeGemmaError as error:
            said = click.ClickException(str(error))
            said.exit_code = error.exit_code
            raise said from None
