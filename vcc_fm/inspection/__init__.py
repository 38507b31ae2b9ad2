"""What is in a file: a diagnosis without a recipe."""
