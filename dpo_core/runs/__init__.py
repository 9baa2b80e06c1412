"""What a training needs besides mathematics: its folder, checkpoints, checks, and several processes."""
