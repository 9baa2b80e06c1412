"""Methods beside DPO: its family of losses, KTO's loss, and LoRA."""
