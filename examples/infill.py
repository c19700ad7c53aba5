"""Fill the gap in a piece of code with a converted Code Llama, as the model documentation shows it.

Examples:
    python examples/infill.py CodeLlama-7b-hf
    python examples/infill.py CodeLlama-7b-hf --file prompt.py --suffix_first
    sed 's/TODO/<FILL_ME>/' app.py | python examples/infill.py CodeLlama-7b-hf --file -

Needs transformers (4.57 or 5.x) beside this package. Greedy: the same prompt gives the same text.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
from safetensors import SafetensorError

from codellama_convert import CodeLlamaTokenizer, ConvertError

if TYPE_CHECKING:
    import torch

# The example of the model's documentation.
PROMPT = '''\
def remove_non_ascii(s: str) -> str:
    """ <FILL_ME>
    return result
'''


def load_model(folder: Path, dtype: str) -> Any:
    """Load the weights through transformers.

    Args:
        folder: What was converted.
        dtype: A dtype's name, or "auto" for that of the files.

    Returns:
        A `LlamaForCausalLM`.

    Raises:
        ClickException: If transformers is missing, or cannot load the folder.
    """
    try:
        # Here, not above: seconds, which --help and a wrong prompt need not wait for.
        from transformers import LlamaForCausalLM  # noqa: PLC0415
        from transformers.utils import logging  # noqa: PLC0415
    except ImportError as problem:
        raise click.ClickException(
            f"transformers cannot be imported ({problem}); pip install transformers"
        ) from problem
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return LlamaForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    # RuntimeError: tensors whose shapes are not those of config.json.
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        raise click.ClickException(
            f"{folder}: transformers cannot load it ({str(problem).splitlines()[0]}); "
            f"codellama-convert verify --output_dir {folder} shows what is wrong"
        ) from problem


def fill(
    model: Any,
    tokenizer: CodeLlamaTokenizer,
    prompt: str,
    *,
    suffix_first: bool = False,
    max_new_tokens: int = 256,
) -> str:
    """Let the model write what belongs in the place of `<FILL_ME>`.

    Says so on stderr where the model did not come to an end of its own.

    Args:
        model: From `load_model`.
        tokenizer: Of the same folder.
        prompt: A text with one `<FILL_ME>`.
        suffix_first: Whether the prompt tells the suffix before the prefix.
        max_new_tokens: Tokens after which to stop, if the model does not stop by itself.

    Returns:
        The text for the gap.

    Raises:
        TokenizerError: If the model was not made for infilling, or there are two gaps.
    """
    inputs = tokenizer(prompt, return_tensors="pt", suffix_first=suffix_first)
    stop_ids = [tokenizer.eos_token_id, tokenizer.eot_id]
    output: torch.Tensor = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_ids,
        pad_token_id=tokenizer.eos_token_id,
    )
    if int(output[0, -1]) not in stop_ids:
        click.echo(
            f"note: cut off after {max_new_tokens} tokens; --max_new_tokens allows more", err=True
        )
    return tokenizer.decode_infilling(output[0, inputs["input_ids"].shape[1] :])


def read_prompt(text: str | None, source: TextIO | None) -> str:
    """Take the prompt from the command line or a file, or else the documentation's.

    Args:
        text: From the command line.
        source: The file.

    Returns:
        The prompt.

    Raises:
        ClickException: If the file is no text, or both are given.
    """
    if source is None:
        return PROMPT if text is None else text
    if text is not None:
        raise click.UsageError("give TEXT or --file, not both")
    try:
        return source.read()
    except UnicodeDecodeError as problem:
        raise click.ClickException(f"{source.name}: no UTF-8 text ({problem})") from problem


@click.command(context_settings={"token_normalize_func": lambda name: name.replace("-", "_")})
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("text", required=False)
@click.option("--file", "source", type=click.File(encoding="utf-8"), help="A prompt; - for stdin.")
@click.option(
    "--suffix_first", is_flag=True, help="Put the suffix before the prefix in the prompt."
)
@click.option(
    "--max_new_tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Where to cut off a filling that does not end.",
)
@click.option(
    "--dtype",
    type=click.Choice(("auto", "bfloat16", "float16", "float32")),
    default="auto",
    show_default=True,
    help="To compute in; auto is that of the files.",
)
def main(
    folder: Path,
    text: str | None,
    *,
    source: TextIO | None,
    suffix_first: bool,
    max_new_tokens: int,
    dtype: str,
) -> None:
    """Fill the <FILL_ME> in TEXT with the converted model in FOLDER.

    Without TEXT and --file, it fills the example of the model's documentation.
    """
    prompt = read_prompt(text, source)
    if not (folder / "config.json").is_file():
        raise click.ClickException(
            f"{folder}: not a converted folder, it holds no config.json; "
            "convert a checkpoint with codellama-convert first"
        )
    try:
        tokenizer = CodeLlamaTokenizer.from_pretrained(folder)
        if tokenizer.fill_token not in prompt:
            raise click.UsageError(f"the text holds no {tokenizer.fill_token}")
        tokenizer.encode(prompt)  # says in a moment what the model would be loaded for in vain
        model = load_model(folder, dtype)
        filling = fill(
            model, tokenizer, prompt, suffix_first=suffix_first, max_new_tokens=max_new_tokens
        )
    except ConvertError as problem:
        raise click.ClickException(str(problem)) from problem
    click.echo(prompt.rstrip("\n"))
    click.echo("\nfilled in:\n")
    click.echo(prompt.replace(tokenizer.fill_token, filling).rstrip("\n"))


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # code holds any character
    main()
