"""Probes of judges and policies: questions whose answer should not change, and how often it does."""
