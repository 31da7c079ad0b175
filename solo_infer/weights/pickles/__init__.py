"""Reading of PyTorch pickles without executing them."""
