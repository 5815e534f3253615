"""Chapter 3: training with checkpoints that verify, a memory probe before it, and curves while it runs.

May use evaluation and every room below it, none of the other chapters' rooms.
"""
