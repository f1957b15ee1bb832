"""Measurements beside rivals, on the machine at hand; see README.md. They assert nothing."""
