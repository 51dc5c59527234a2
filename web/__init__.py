"""The player and the studio, as static pages."""
