"""Volume + model -> prediction."""
