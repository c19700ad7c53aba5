"""Start the command line; a signal during the imports must not end in a traceback."""

from __future__ import annotations

from codellama_convert.interrupt import exit_on_signals


def main() -> None:
    """Run the command line."""
    exit_on_signals()
    from codellama_convert.cli import main as run  # noqa: PLC0415 - after the handlers

    run(prog_name="codellama-convert")


if __name__ == "__main__":
    main()
