"""The command line: ``python -m dpo_core data | pretrain | sft | train | generate | evaluate | diagnose | pocket``."""

from dpo_core.cli.commands import main

__all__ = ["main"]
