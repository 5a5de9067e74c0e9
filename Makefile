# make demo   the whole story on embedded data, in minutes
# make test   the tests (make test-slow: the long ones and those that need model zoos)
# make lint   ruff and mypy
# make bench  figures of docs/: accuracy on this machine, cost of a training step, of dead branches, of depth
# Every target makes .venv first.

BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow lint bench clean

demo: $(READY)
	$(BIN)/latmorph demo --output out/demo

test: $(READY)
	$(BIN)/python -m pytest -n 2

test-slow: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-zoo.txt
	tools/record_slow_tests.sh

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m tools.bench_step
	$(BIN)/python -m tools.bench_topology
	$(BIN)/python -m tools.bench_scaling
	$(BIN)/python -m tools.accuracy

clean:
	rm -rf .venv out build dist *.egg-info

$(READY): pyproject.toml constraints.txt tools/make_venv.sh
	tools/make_venv.sh
