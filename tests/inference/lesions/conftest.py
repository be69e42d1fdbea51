from small_models import plan, save
from three_images import images, run

__all__ = ["images", "plan", "run", "save"]
