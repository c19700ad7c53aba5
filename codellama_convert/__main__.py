"""Run the command line as `python -m codellama_convert`."""

from codellama_convert.cli import main

if __name__ == "__main__":
    main(prog_name="codellama-convert")
