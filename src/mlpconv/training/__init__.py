"""Training: recipes, one step as a pure function, and a loop that survives being killed."""

from mlpconv.training.progress import Progress
from mlpconv.training.recipe import Recipe, find_recipe, list_recipes, read_recipe

__all__ = ["Progress", "Recipe", "find_recipe", "list_recipes", "read_recipe"]
