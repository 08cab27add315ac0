"""Reading verdicts, driven by the grammar that a template's front matter or a file in `prompts/grammars/` declares.

A grammar says what a reply may say, where that stands, and which occurrence counts. There are three kinds:

    means: {A: first, B: second, C: tie}      # pairwise: options, and who of the two shown is better (`A>>B` and so on too)
    rating: [1, 9]                            # the lowest and the highest number; `decimals: true` allows those between
    ranking: '>'                              # the shown in order, best first; `ties: '='` allows equals
    ranking: places                           # or: a name and its place each

and for all of them

    verdict: '\\[\\[([ABC])\\]\\]'  # a regular expression whose group 1 is the option, the number or the list (with places:
                                # groups `name` and `place`); or a list of them, of which the first that occurs is used;
                                # or `token`: the reply is one bare option, read from the log-probabilities
    occurrence: all             # all (default): every occurrence must agree; first; last; listed: of several, the option
                                # that `means` lists first (as published parsers do that try one after another)
    stands: anywhere            # anywhere (default); first or last: nothing else stands before it, or after it
    names: [m, M]               # what the shown are called in a ranking; A, B, C, ... otherwise
    refusal: ['I would rather not']     # how this judge declines, if not in the usual words

A reply that offers no verdict, contradicts itself or names what was not offered is no verdict: never a tie, never the
nearest match. With `occurrence: all` a short one that declines to judge and gives a verdict all the same contradicts itself:
what a form makes a judge write behind its refusal ("[[C]]" most often) is no opinion on the answers. Patterns are ASCII
ones: `\\d` is 0 to 9, a full-width digit is none.
"""

from rlaif.judges.parse.grammar import Grammar, load_grammar
from rlaif.judges.parse.unreadable import Unreadable

__all__ = ["Grammar", "Unreadable", "load_grammar"]
