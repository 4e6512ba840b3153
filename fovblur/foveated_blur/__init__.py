"""The foveated Gaussian blur: api -> op -> one backend module -> kernel."""
