#!/usr/bin/env bash
# Has the wire contract changed in a way that breaks clients?
#   breaking.sh [REVISION]     compare proto/ with REVISION; by default the newest v* tag that
#                              HEAD descends from, or main when nothing was released yet
# The revision is unpacked with `git archive`, so that shallow clones, detached heads and linked
# worktrees all work, and nothing is fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
buf=${BUF:-.venv/bin/buf}

against=${1:-}
if [ -n "$against" ]; then
    git rev-parse --quiet --verify "$against^{commit}" >/dev/null \
        || { echo "buf breaking: there is no revision $against"; exit 1; }
else
    against=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true)
fi
for branch in refs/heads/main refs/remotes/origin/main; do
    if [ -z "$against" ] && git rev-parse --quiet --verify "$branch" >/dev/null 2>&1; then
        against=$branch
    fi
done

if [ -z "$against" ] || ! git cat-file -e "$against:proto" 2>/dev/null; then
    echo "buf breaking: skipped, there is neither a released tag nor a proto/ on main to compare with"
    exit 0
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mapfile -t paths < <(git ls-tree --name-only "$against" buf.yaml proto third_party)
git archive "$against" -- "${paths[@]}" | tar -x -C "$scratch"
echo "buf breaking: against $against"
"$buf" breaking --against "$scratch"
