"""Fast ways to compute what the chapters' modules say plainly, with the same numbers.

- ``attention``: attention without padding, and in bf16 on a CPU.
- ``head``: log-probs from the output head, without ever holding all logits.
"""
