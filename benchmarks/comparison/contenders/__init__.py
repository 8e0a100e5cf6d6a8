"""One module for each contender: TITLE, REQUIREMENTS, VARIANTS, unable() and prepare()."""
