"""This machine: devices, environment variables, processes, files."""
