"""The HTML report of a run, and what is published in the repository.

May use every room, since it shows what they left.
"""
