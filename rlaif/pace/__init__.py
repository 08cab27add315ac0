"""When one endpoint may be sent a call: `Pace`, a controller without a clock of its own.

Four limits stand side by side, each in its module, and a call goes when all let it. The concurrency (`control`) grows by
slow start and shrinks by a fifth on a refusal, as Jacobson (1988) does it with packets. The rate (`rate`) is what refusals
teach of the endpoint's requests per second. The knee (`knee`) is the concurrency beyond which a queue only grows, read off
the latencies. The quota (`quota`) is what the user allows in a minute. Simulations of many endpoints hold it to account in
the tests; there is nothing in it to set.
"""

from rlaif.pace.control import Flight, Pace

__all__ = ["Flight", "Pace"]
