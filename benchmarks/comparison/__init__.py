"""The comparison with what people use today: contenders, the tasks they are given, and the page of results."""
