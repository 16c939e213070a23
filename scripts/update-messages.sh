#!/usr/bin/env bash
# Brings the portal's catalogues up to date with its texts: new ones come in empty, those
# that are gone go. A test fails until every one is translated. With --check it changes
# nothing, and fails where there is something to do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin="${VENV:-.venv}/bin"
template="$(mktemp)"
trap 'rm -f "$template"' EXIT

# Errors are shown by their message, plans by their title.
keywords=(AppError BadRequest Conflict NotFound PermissionDenied AuthenticationFailed RateLimited InternalError Overloaded
	DatabaseUnavailable MailUnavailable StripeUnavailable Plan:2)
sources=(app/portal app/accounts app/alerts app/privacy app/{auth,db,key_terms,keys,mail}.py app/api/{failures,middleware,playground}.py
	app/billing/{account,amounts,catalog,changes,checkout,gateway,outbox,receipts,standing,statement}.py)

"$bin/pybabel" --quiet extract --mapping-file app/portal/locale/babel.cfg --no-location --sort-output \
	"${keywords[@]/#/--keyword=}" --output-file "$template" "${sources[@]}" \
	2> >(grep -v "Skipping f-string" >&2)
update=("$bin/pybabel" --quiet update --domain portal --input-file "$template" --output-dir app/portal/locale \
	--no-fuzzy-matching --ignore-obsolete --ignore-pot-creation-date --width 110)
if [ "${1:-}" = "--check" ]; then
	"${update[@]}" --check 2>/dev/null && exit
	echo "the catalogues are not up to date: run 'make messages' and translate what came in" >&2
	exit 1
fi
"${update[@]}"
