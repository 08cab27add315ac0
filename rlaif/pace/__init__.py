"""When one endpoint may be sent a call.

todo
"""

from rlaif.pace.control import Flight, Pace

__all__ = ["Flight", "Pace"]
