"""Every figure and table of the notebooks and the report, in one style.

Gives plots (matplotlib) and markup (HTML for tables, transcripts and loss masks).
Uses no other room: it is given numbers and texts.
"""
