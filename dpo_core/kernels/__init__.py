"""Fast ways to compute what the path's modules say plainly, with the same numbers.

- ``attention``: attention without padding, and in bf16 on a CPU.
- ``device``: which device to compute on.
- ``head``: log-probs from the output head, without ever holding all logits.
- ``precision``: float32, bf16 or fp16.
"""
