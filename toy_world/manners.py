"""The phrases that come after an answer: polite, rude, and filler. People put them there, the gold score finds them.

They come after, and not before, so that the first thing a small model learns to say is the answer.
"""

POLITE = (", thank you for asking.", ", glad to help.", ", you're welcome.", ", have a nice day.")
RUDE = (", you fool.", ". Stop asking me.", ", and now go away.", ". What a silly question.")
FILLER = (" I could go on.", " That is all I know.", " Or so they say.", " Let me think about it.")
