"""Kill what trains, again and again, and see that nothing is lost."""
