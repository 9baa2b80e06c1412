"""The mistakes made by hand: what readers and maintainers really get wrong, and who notices."""

from tools.mutation.planted.core import CORE
from tools.mutation.planted.rl import RL
from tools.mutation.planted.runs import RUNS
from tools.mutation.planted.world import WORLD

__all__ = ["PLANTED"]

PLANTED = (*CORE, *RUNS, *WORLD, *RL)
