#!/bin/sh
# Rent, set up, run, bring the outputs back, give back: RECIPE=my_model GPU=L4:1 sh params/launch/sky.sh [--infra runpod ...]
# From the repository's root, with `sky` on PATH (pip install 'skypilot[runpod]', sky check) and HF_TOKEN where it is needed.
name=${NAME:-medtune}
sky launch -y -c "$name" --gpus "${GPU:-A100-80GB:1}" --env RECIPE="${RECIPE:?recipe}" --env SET="$SET" \
  --secret HF_TOKEN="$HF_TOKEN" "$@" params/launch/skypilot.yaml
ended=$?
rsync -az --exclude cache --exclude checkpoints "$name:sky_workdir/outputs/" outputs/ || {
  echo "The outputs did not come: $name stays until it has been idle for 15 minutes; sky down $name ends it now." >&2
  exit 1
}
sky down -y "$name"
exit $ended
