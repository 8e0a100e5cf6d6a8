"""Where loss of forward and of backward information balance, from theory and in random networks."""
