"""Providers behind both front doors: jobs, and calls of OpenAI's clients."""
