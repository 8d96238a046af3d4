"""`trimtab export`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from trimtab.lab.commands.shared import told, wide_console


class Format(str, Enum):
    """What can be written."""

    hf = "hf"
    peft = "peft"
    vllm = "vllm"
    gguf = "gguf"


def export(
    method: Annotated[Path, typer.Argument(help="The folder of a method: runs/NAME/TITLE.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="A new folder for what is written.", show_default=False)],
    to: Annotated[Format, typer.Option(help="What is to read it.", show_default=False)],
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Largest logit gap, relative to the logits, that is accepted.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="vllm, gguf: convert to LoRA of this rank; if left out, only if needed.")
    ] = None,
) -> None:
    """Hand a finished method on to other programs; what is written is read back and compared.

    [bold]hf[/bold]: a folder for Transformers (merged), with tokenizer, chat template and generation config.
    [bold]peft[/bold]: the adapter, read back by PEFT where it is installed. [bold]vllm[/bold]: the adapter as the LoRA
    that vLLM serves, converted if it is another method, and the command that serves it. [bold]gguf[/bold]: a LoRA
    adapter for llama.cpp.

    Example: [bold]trimtab export runs/chat/lora chat-lora --to vllm[/bold]
    """
    console = wide_console()
    with told():
        from trimtab.lab.export import adapters, gguf, hf

        writers = {
            Format.hf: hf.export,
            Format.peft: adapters.export_peft,
            Format.vllm: adapters.export_vllm,
            Format.gguf: gguf.export,
        }
        lines = writers[to](method, out, console, tolerance=tolerance, rank=rank)
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    console.print(Text(f"Written to {out}"), soft_wrap=True)
