"""The server of a finished run: llama-server behind a FastAPI application, a Streamlit page, guard rails and meters.

`python -m app` starts all three. It may use lib; lib never imports it. docs/serving.md is the manual.
"""
