"""From a model's name to its weights: manifest, verified file, state dict."""
