"""Prediction: applies trained models to volumes."""
