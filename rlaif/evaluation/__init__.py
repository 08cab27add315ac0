"""How good a judge is: its verdicts on pairs whose better answer is known, turned into numbers, a table and a page.

judged    what each judge said of each gold pair, live, recorded, or a baseline's, in one form
numbers   accuracy, agreement, biases and calibration of one judge: pure
paired    the difference between two judges on the same pairs: pure
live      judges asked now, each in a run directory of its own
table, page, plots    the same numbers for the terminal and the browser
"""
