# make demo   the whole story on embedded data, in minutes
# make test   the tests (make test-slow, make zoo: the long ones)
# make lint   ruff and mypy
# make bench  figures of docs/: accuracy on this machine, cost of a regularised training step
# Every target makes .venv first.

BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow zoo lint bench clean

demo: $(READY)
	$(BIN)/latmorph demo --output out/demo

test: $(READY)
	$(BIN)/python -m pytest -n 2

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

zoo: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-zoo.txt
	$(BIN)/python -m pytest -m zoo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m tools.bench_step
	$(BIN)/python -m tools.accuracy

clean:
	rm -rf .venv out build dist *.egg-info

$(READY): pyproject.toml constraints.txt tools/make_venv.sh
	tools/make_venv.sh
