"""What ships with alignloop: recipes, their chat templates, a config of each stage, and accelerate profiles."""
