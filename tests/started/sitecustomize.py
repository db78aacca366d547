"""Of Python processes that tests start, as tests/conftest.py has it of their own."""

import gc

gc.set_threshold(50_000, 20, 50)
