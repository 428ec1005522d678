"""Precision schedules for JAX."""
