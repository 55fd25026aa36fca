"""Sentences of good and bad mood, in pairs that say the contrary: what a monitor is fitted to."""

from scripts.sentiment import NEGATIVE, POSITIVE

_MORE = (
    ("The garden looked lovely in the morning light", "The garden looked dead in the grey light"),
    ("Our guide was helpful, patient and cheerful", "Our guide was rude, impatient and lazy"),
    ("The cake she baked tasted heavenly", "The cake she baked tasted revolting"),
    ("They won the match and everyone celebrated", "They lost the match and everyone despaired"),
    ("My new phone works perfectly and looks great", "My new phone is broken and looks cheap"),
    ("The doctor was gentle and gave us hope", "The doctor was cold and gave us no hope"),
    ("It was a thrilling and satisfying ending", "It was a tiresome and disappointing ending"),
    ("The children laughed with pleasure all day", "The children cried with misery all day"),
    ("I admire her honest and graceful writing", "I despise her false and clumsy writing"),
    ("The service was quick and truly friendly", "The service was slow and truly insulting"),
    ("We enjoyed a pleasant and relaxing weekend", "We suffered a stressful and ruined weekend"),
    ("The singer has a rich and gorgeous voice", "The singer has a thin and annoying voice"),
    ("Thank you, this made my whole week", "No thanks, this ruined my whole week"),
    ("The room smelled fresh and felt cosy", "The room smelled foul and felt filthy"),
    ("His speech was inspiring and full of warmth", "His speech was hateful and full of lies"),
    ("A triumph that deserves every award", "A failure that deserves every complaint"),
    ("The view from the top was breathtaking", "The view from the top was depressing"),
    ("Great value, and I would happily buy it again", "A waste of money, and I want it refunded"),
    ("She felt proud, loved and grateful", "She felt ashamed, lonely and bitter"),
    ("The dog was playful and adored by all", "The dog was vicious and feared by all"),
)

GOOD = (*POSITIVE, *(good for good, _ in _MORE))
BAD = (*NEGATIVE, *(bad for _, bad in _MORE))
"""Each is the contrary of the good one in its place."""
