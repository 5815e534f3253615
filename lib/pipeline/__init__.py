"""What a stage is: its recipe, its folder and lock, its freshness, the machine and ranks it runs on, its set-up.

Gives run.start and stage.finish to the notebooks; recipe, schema and files to everybody; setup and toolchain to Make.
Uses no other room.
"""
