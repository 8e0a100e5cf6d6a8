"""The comparison with the tools that people use today: contenders, their tasks, and the page of results."""
