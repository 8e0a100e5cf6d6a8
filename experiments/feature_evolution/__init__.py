"""What optimal feature evolution captures of gradient descent."""
