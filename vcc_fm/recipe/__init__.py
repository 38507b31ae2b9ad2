"""The recipe: its sections, and how a file becomes one."""
