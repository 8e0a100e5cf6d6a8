"""How alignment changes in networks whose last layer alone is trained."""
