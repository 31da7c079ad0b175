"""Runtime environment: devices, environment variables, processes, atomic files, timing."""
