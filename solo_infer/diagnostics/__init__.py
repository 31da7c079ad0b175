"""Tools that examine a machine or a model: doctor, verify, benchmark, info."""
