#!/bin/bash
# `make test` on a clean clone in four surroundings, one after the other, and one table of what came out:
#
#     bash experiments/outside_use/test_environments.sh [REPOSITORY]      # default: this checkout's; 30 to 60 minutes on two cores
#
# 1. under nohup (SIGHUP ignored), 2. as an ordinary user, 3. in a path with a space, 4. with LC_ALL=C. Each clone sets up its own .venv, unless PACKAGES names
# another .venv whose packages are to be read. The second needs root (useradd, and a Python that the user can start), and is skipped without.
set -u
here=$(cd "$(dirname "$0")/../.." && pwd)
repository=$(cd "${1:-$here}" && pwd)
work=$(mktemp -d) && chmod 755 "$work"
rows=()

clone() { # FOLDER
    git clone --quiet "$repository" "$1" || exit 1
    if [ -n "${PACKAGES:-}" ]; then
        "$PACKAGES/bin/python" -m venv --without-pip "$1/.venv"
        "$PACKAGES/bin/python" -c 'import site; print("\n".join(site.getsitepackages()))' > "$(echo "$1"/.venv/lib/python3*/site-packages)/a_packages.pth"
        echo "$1/src" > "$(echo "$1"/.venv/lib/python3*/site-packages)/b_clone.pth"
        touch "$1/.venv/.ready"
    fi
}

row() { # NAME LOG CODE SECONDS
    summary=$(grep -E '[0-9]+ (passed|failed|error)' "$2" | tail -1 | tr -d '=')
    [ -n "$summary" ] || summary=$(grep -vE '^\s*$' "$2" | tail -1)
    failed=$(grep -E '^(FAILED|ERROR) ' "$2" | cut -d' ' -f2 | sort -u | tr '\n' ' ')
    rows+=("| $1 | $3 | $(($4 / 60)) min | ${summary:0:90} | ${failed:--} |")
}

timed() { # NAME LOG COMMAND...
    local name=$1 log=$2 start=$SECONDS
    shift 2
    echo "$name: $log" >&2
    "$@" > "$log" 2>&1
    row "$name" "$log" $? $((SECONDS - start))
}

export PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-} -rfE --verbosity=0"

clone "$work/nohup"
timed "nohup" "$work/nohup.log" nohup make -C "$work/nohup" test

user=nanochat-tester
if [ "$(id -u)" = 0 ] && useradd --create-home --shell /bin/bash "$user"; then
    clone "$work/ordinary"
    chown -R "$user" "$work/ordinary"
    timed "ordinary user" "$work/ordinary.log" runuser -u "$user" -- env HOME="/home/$user" PYTEST_ADDOPTS="$PYTEST_ADDOPTS" make -C "$work/ordinary" test
    userdel --remove "$user" 2> /dev/null
else
    rows+=("| ordinary user | - | - | skipped: needs root and useradd | - |")
fi

clone "$work/a path with a space"
timed "path with a space" "$work/space.log" make -C "$work/a path with a space" test

clone "$work/locale"
timed "LC_ALL=C" "$work/locale.log" env LC_ALL=C make -C "$work/locale" test

printf '%s\n' "| surroundings | exit code | time | summary | failed |" "|---|---|---|---|---|" "${rows[@]}"
echo "logs: $work/*.log"
