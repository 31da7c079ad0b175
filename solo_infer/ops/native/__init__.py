"""Kernels for the CPU, compiled from C++, where the installed package has them."""
