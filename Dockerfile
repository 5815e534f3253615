# The two commands of the README, on a CPU:
#   docker build -t medtune . && docker run -it --rm -v "$PWD/outputs:/medtune/outputs" medtune make all
#   docker run -it --rm medtune make test
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends make g++ git && rm -rf /var/lib/apt/lists/*
WORKDIR /medtune
ENV PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# Packages and llama.cpp first: an edit elsewhere in the repository leaves these minutes in the image's cache
COPY Makefile pyproject.toml requirements* toolchain.txt ./
COPY lib lib
RUN make setup
COPY . .
CMD ["make", "all"]
