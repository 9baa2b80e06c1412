"""How to compute: fast ways with the same numbers as the plain ones, and which precision and device to take.

- ``attention``: attention without padding, and in bf16 on a CPU.
- ``head``: log-probs from the output head, without ever holding all logits.
- ``precision``: float32, bf16 or fp16.
- ``device``: an NVIDIA GPU, an Apple GPU or the CPU.
"""
