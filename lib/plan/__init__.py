"""Will a recipe fit, how long does it take, what does it cost; and what a rehearsal of it changes.

May use every room but execute's and the report's: it counts what the chapters do by their own constants.
"""
