"""What a training needs besides mathematics: its folder, checkpoints, checks, and several processes.

A run's folder holds ``final/`` (the model, Hugging Face layout), ``history.jsonl``, ``config.json``, the cached
``reference.safetensors`` and ``checkpoints/step-000100/``. With LoRA, ``adapter/`` stands beside a ``final/`` in which
it is merged.
"""
