"""How results are shown: cards say what, as HTML or on a terminal; and plots."""
