"""What can be set: recipes with their scales, typed sections, the prompt template."""
