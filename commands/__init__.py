"""The commands, one a file. Each reads its options, builds one object, calls one function and prints.

What is heavy to import is imported inside them, so that `--help` answers at once.
"""
