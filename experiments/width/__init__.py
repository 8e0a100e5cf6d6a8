"""The alignment hierarchy from narrow to wide networks."""
