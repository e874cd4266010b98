"""OpenAI's own clients, unchanged, against a running API and worker: an emulated server is the provider behind them."""
