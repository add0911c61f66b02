# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv first.
.PHONY: setup demo test check docs

export OMP_NUM_THREADS = 1
export HF_HUB_OFFLINE = 1

setup:
	@scripts/setup

demo: setup
	@.venv/bin/python examples/01_distill.py out/demo
	@.venv/bin/python examples/02_sequence.py out/demo
	@.venv/bin/python examples/03_embed.py out/demo
	@.venv/bin/python examples/04_distill_student.py out/demo

test: setup
	@scripts/test

check: setup
	@scripts/check

docs: setup
	@scripts/make_cli_reference
