"""The tests: run by `make test`; conftest.py has the Ray that they share."""
