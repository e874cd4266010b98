# Everything limner needs is set up by the first target you call: python3 >= 3.11, make and the package registries.
PYTHON ?= python3
BENCH ?= submit
RUN := .venv/bin

.PHONY: up demo test test-long check bench soak clean

up: .venv/ready
	$(RUN)/limner up

demo: .venv/ready
	$(RUN)/limner demo $(IMAGE)

test: .venv/ready
	$(RUN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=5

test-long: .venv/ready
	$(RUN)/pytest -q -m long -n 2 --dist load --maxschedchunk 1 --durations=40 --durations-min=5

soak: .venv/ready
	$(RUN)/pytest -q -m soak

check: .venv/ready
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

bench: .venv/ready
	@$(RUN)/python -m bench.$(BENCH) $(ARGS)

.venv/ready: pyproject.toml uv.lock tools/bootstrap.py
	$(PYTHON) tools/bootstrap.py
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis out
