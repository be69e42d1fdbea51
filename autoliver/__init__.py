"""Self-configuring segmentation of liver and liver tumours in CT and MR, with transfer."""

from autoliver.api import Predictor, evaluate, load_model, plan, predict, select, train

__all__ = ["Predictor", "evaluate", "load_model", "plan", "predict", "select", "train"]
