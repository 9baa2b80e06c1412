# Everything runs in .venv. What builds the book is installed first (requirements-book-lock.txt, without torch); the rest
# (requirements-lock.txt) is added by the first target that needs it.
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
JOBS ?= 2
BIN := .venv/bin
BOOK := .venv/.book
READY := .venv/.ready
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with=tests/sanitize.cfg --nbval-cell-timeout=300

.DEFAULT_GOAL := help
.PHONY: book env pdf test notebooks records address release format lock clean help

book: $(BOOK)  ## Build the book into _build/html; a warning is an error
	$(BIN)/jupyter-book build . --all -W --keep-going

env: $(READY)  ## Install the rest: the library with torch, and what the chapters and tests need

pdf: book $(READY)  ## Print the whole book into _build/book.pdf; needs Chromium
	$(BIN)/python tools/pdf.py _build/html _build/book.pdf

test: $(READY)  ## Lint, check types, test dpo_core with its docstrings, and re-run every notebook
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(NBVAL) tests dpo_core notebooks

notebooks: $(READY)  ## Run every notebook and store its outputs, which the book shows and the tests compare
	OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	$(BIN)/jupyter nbconvert --to notebook --inplace --coalesce-streams notebooks/*.ipynb

records: $(READY)  ## After a change to the pocket model, its corpus or judge: record all runs anew, two hours
	$(BIN)/python -m tools.records.museum
	$(BIN)/python -m tools.records.run_record
	$(BIN)/python -m tools.records.start
	for chapter in 08 09 10; do $(BIN)/python -m tools.records.sweep $$chapter || exit 1; done
	$(BIN)/python benchmarks/pocket_dpo.py

address: $(READY)  ## Write the repository's address everywhere: make address URL=https://github.com/OWNER/REPO
	$(BIN)/python tools/publish.py address "$(URL)"

release: $(READY)  ## Write a version everywhere, and say which git commands publish it: make release VERSION=1.2.3
	$(BIN)/python tools/publish.py release "$(VERSION)"

format: $(READY)  ## Sort imports, mend what ruff can mend, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## Write both lock files anew from the loose bounds
	rm -rf _build/lock _build/book-lock
	$(PYTHON) -m venv _build/lock
	_build/lock/bin/pip install --quiet torch==2.13.0 -r requirements.txt -e ".[course,dev]"
	{ echo "# What make test and CI install (Python 3.11), written by make lock; requirements.txt has the loose bounds."; \
	  _build/lock/bin/pip freeze --exclude-editable | sed -e '/^nvidia-/d' -e '/^cuda-/d' -e '/^triton/d' -e 's/+.*//'; echo "-e ."; \
	} > requirements-lock.txt
	$(PYTHON) -m venv _build/book-lock
	grep -v '^-e' requirements-lock.txt > _build/book-lock/versions.txt
	_build/book-lock/bin/pip install --quiet --constraint _build/book-lock/versions.txt jupyter-book
	{ echo "# What make book installs: the part of requirements-lock.txt that builds the book, written by make lock."; \
	  _build/book-lock/bin/pip freeze; } > requirements-book-lock.txt

clean:  ## Remove what was built, but not .venv
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache *.egg-info

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BOOK): requirements-book-lock.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement $<
	touch $@

$(READY): requirements-lock.txt $(BOOK)
	$(BIN)/pip install --quiet --requirement $<
	touch $@
