"""Trained networks as integers: the program, its interpreter, and files for other runtimes."""
