"""Loading of weights: from a model name to a verified file, and from a file to a configured network."""
