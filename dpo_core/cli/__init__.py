"""The command line: ``python -m dpo_core data | pretrain | sft | train | generate | evaluate | pocket``."""

from dpo_core.cli.commands import main

__all__ = ["main"]
