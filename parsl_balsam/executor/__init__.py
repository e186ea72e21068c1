"""The Parsl side, in the user's script."""
