"""Says whether a run's ledger is sound, and saves what can be read of one that is not.

`examine` changes nothing and believes nothing: SQLite checks its own structure, every row's checksum is computed, the
totals are added up, and the WAL is read frame by frame, since SQLite passes over a damaged one without a word.
`salvage` copies into a new file. A row is taken only if its checksum is right; where it was found does not matter then.
So a damaged file may be read as wildly as need be: whatever comes out was written by a run, or does not come out.
"""

from rlaif.doctor.checks import examine
from rlaif.doctor.report import Report
from rlaif.doctor.rescue import salvage
from rlaif.doctor.source import check_log

__all__ = ["Report", "check_log", "examine", "salvage"]
