# Functions of `tests/run` and `tests/quick`: sections, their times, and a summary. Every section runs, also after another has
# failed, so that one failure hides no other.

all=(--locked --features redis,failpoints,opentelemetry)
times=()
failed=()

# Runs a command as a section. Records its time, and whether it failed.
section() {
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    if ! "$@"; then
        failed+=("$name")
        echo "== $name: FAILED" >&2
    fi
    times+=("$(printf '%5d s  %s' $((SECONDS - start)) "$name")")
}

# Prints the time of each section, and ends the script with exit code 1 if one has failed.
summary() {
    printf '\n== Time of each section\n'
    printf '%s\n' "${times[@]}"
    if [ ${#failed[@]} -gt 0 ]; then
        echo "FAILED: ${failed[*]}" >&2
        exit 1
    fi
}
