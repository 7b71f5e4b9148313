"""Vectors from other tools and for other tools: `export`, `adopt` and the formats they know."""
