"""Integrations with other libraries: Ray Data, the web demo."""
