"""Training on text: pretraining, fine-tuning on good answers, and the optimiser Muon."""
