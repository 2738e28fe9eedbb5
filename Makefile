# Each command is one line of `python -m tools.NAME`: without make, type that line (the first word may be `python`).
PYTHON ?= python3
PORT ?= 8000

.PHONY: book serve setup test test-fast test-pages exercises notebooks

book:        ## Build the pages (needs no torch) and print the one to open
	$(PYTHON) -m tools.book build
serve:       ## Serve the built pages on localhost
	$(PYTHON) -m tools.book serve --port $(PORT)
setup:       ## Install everything into .venv
	$(PYTHON) -m tools.env
test:        ## Everything but the browser: 5 to 9 minutes
	$(PYTHON) -m tools.test
test-fast:   ## What takes less than 90 seconds
	$(PYTHON) -m tools.test --fast
test-pages:  ## Open every built page in Chromium, with the network blocked
	$(PYTHON) -m tools.test --pages
exercises:   ## Generate stubs and solutions from exercises/authored
	$(PYTHON) -m tools.exercises
notebooks:   ## Execute and save the notebooks; one chapter: make notebooks CH=ch02
	$(PYTHON) -m tools.execute $(CH)
