"""Text generation for the built-in GPT: continuous batching over a paged cache.

blocks.py, schedule.py    decide: who has which blocks, what the next step reads
request.py, stops.py      what is asked, and where a text ends
sampling.py, paged.py     compute: tokens from logits, logits from blocks
engine.py                 one step after the other
"""
