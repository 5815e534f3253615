"""Will a recipe fit, how long does it take, what does it cost; and what a rehearsal of it changes.

May use evaluation and every room below it, none of the other chapters' rooms.
"""
