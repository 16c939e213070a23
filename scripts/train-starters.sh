#!/usr/bin/env bash
# Trains the starter models again, from public data that this repository does not hold.
#
# TOLLGATE_DATA names a folder with tinyshakespeare/input.txt, tang_poetry/poet.tang.*.json
# and banking77/{train,test}.jsonl; each model card says where its data comes from. A run
# that is stopped continues where it was. About 90 minutes on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data="${TOLLGATE_DATA:?set TOLLGATE_DATA to the folder with the training data}"
tollgate="${VENV:-.venv}/bin/tollgate"

"$tollgate" train generation --overwrite --out models/shakespeare \
	--data "$data/tinyshakespeare/input.txt" --steps 2400 --dropout 0.3 \
	--data-name "Tiny Shakespeare" --data-source "40,000 lines of Shakespeare's plays, as collected for char-rnn" \
	--license "public domain" --language English \
	--description "Continues text in the manner of Shakespeare's plays."

poems="$(mktemp -d)"
trap 'rm -rf "$poems"' EXIT
cp "$data"/tang_poetry/poet.tang.*.json "$poems"
"$tollgate" train generation --overwrite --out models/tang-poetry \
	--data "$poems" --text-field paragraphs --vocab-size 4096 --width 168 --feed-forward 448 \
	--steps 1100 --eval-every 50 --dropout 0.2 \
	--data-name "10,008 Tang poems" --data-source "chinese-poetry, poet.tang.0 to poet.tang.9000" \
	--license "MIT; the poems are in the public domain" --language "Chinese (traditional)" \
	--description "Continues classical Chinese poems in the manner of the Tang dynasty."

"$tollgate" train classification --overwrite --out models/banking-intents \
	--data "$data/banking77/train.jsonl" --test "$data/banking77/test.jsonl" \
	--data-name "Banking77" --data-source "PolyAI, Casanueva et al. 2020" \
	--license "CC BY 4.0" --language English \
	--description "Tells which of 77 intents a customer's message to a bank has."
