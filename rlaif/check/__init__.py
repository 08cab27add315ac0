"""`rlaif check`: what is wrong with a finished file of training data, whoever made it.

    file -> rows (reading) -> put right what needs no guess (repairs) -> one form for all formats (formats)
         -> checks of a row: structure, answers, tokens, contamination       -> findings
         -> checks of all rows: duplicates, near, balance, mixed formats     -> findings -> table | JSON | cleaned copy (fix)

A finding is a rule (`rules`) with a count and the first examples. Memory does not grow with the rows: what rows are compared
by lies in temporary files (`columns`). Statements about trainers hold for TRL 1.16.0 and name its functions.
"""
