from small_models import plan, save

__all__ = ["plan", "save"]
