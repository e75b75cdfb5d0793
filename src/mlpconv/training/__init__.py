"""Training: recipes, a pure training step, and a loop that can be killed and resumed bit for bit."""

from mlpconv.training.progress import Progress
from mlpconv.training.recipe import Recipe
from mlpconv.training.recipe_files import find_recipe, list_recipes, read_recipe

__all__ = ["Progress", "Recipe", "find_recipe", "list_recipes", "read_recipe"]
