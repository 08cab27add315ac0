"""The parts of the test server (tests/server.py): an endpoint that answers well, or goes wrong in every way that HTTP can show.

behaviour < oracle, faults, rates, wire < room. An endpoint's own log and bill are the truth that a client is held to.
"""
