"""Command line ``solo-infer``: one module per command, with its parser and its function."""
