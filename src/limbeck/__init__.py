"""Divergence losses for knowledge distillation and adversarial training."""
