"""Reading by counting: sentences picked out of a given text, and texts as vectors. Neither is a language model, and both say so.

Owns: what the reader answers to chat messages (`extract`), how answers are cut for a stream and counted (`pieces`), and the
vectors of texts (`embed`).
Words: *text* what is read; *instruction* the words that say what to do with it; *sentence* a piece of the text that is quoted whole;
*term* a word without its ending, as it is compared; *lean* (of a sentence) to begin with a word that points at the one before.
Invariants: every function is pure and its result depends on its arguments alone, not on the process; what is quoted stands in
the text, in this order; time grows with the length of the text but for a bounded number of sentences that are compared with
each other; Harper is loaded in CPU children only, so `shapes`, `pieces` and `embed` import nothing heavy.
Leaves to others: who may ask, how often, for how many texts at once, and what it costs (hub).
"""
