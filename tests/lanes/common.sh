# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What lanes share: running cargo tests, counting them, skipping. A lane adds to `passed`, `failed` and `skipped`.
# Sourced by `run`.

# cargo_tests ARGUMENT...: runs `cargo test ARGUMENT...` and counts by what it prints.
cargo_tests() {
    local log status before=$((passed + failed))
    log=$(mktemp)
    # Not stopping at the first failed test binary, so that the counts are of all tests.
    CARGO_TERM_COLOR=never cargo test --no-fail-fast "$@" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    count_results "$log"
    rm -f "$log"
    if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
        # It did not build, or a test program died before it could count.
        echo "cargo test ended with status $status"
        failed=1
    elif [ $((passed + failed)) -eq "$before" ]; then
        echo "no test ran"
        failed=1
    fi
}

# count_results LOG: adds up cargo's `test result:` lines. An ignored test is a skip, unless its reason says that it
# belongs to another lane (`#[ignore = "lane NAME: ..."]`) or is a process of another test (`#[ignore = "run by NAME"]`).
count_results() {
    local counts
    counts=$(awk '
        /^test result: / { passed += $4; failed += $6 }
        / \.\.\. ignored/ && !/ \.\.\. ignored, (lane|run by) / { skipped++ }
        END { print passed + 0, failed + 0, skipped + 0 }' "$1")
    local p f s
    read -r p f s <<<"$counts"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

# skip_lane WHY: the lane cannot run here.
skip_lane() {
    echo
    echo "SKIPPED: lane $lane: $1"
    echo
    skipped=$((skipped + 1))
}

# prepare COMPONENT...: unpacks software for the lane and sets PREPARED[COMPONENT] to its folder. On failure the lane is
# over: skipped when the software cannot be had here, failed otherwise.
declare -A PREPARED
prepare() {
    local lines status component folder
    lines=$("$tests/packages/prepare" "$@")
    status=$?
    case $status in
        0) ;;
        3) skip_lane "the software it needs cannot be had on this machine (reason above)" ;;
        *)
            echo "lane $lane: preparing $* failed"
            failed=$((failed + 1))
            ;;
    esac
    [ "$status" -eq 0 ] || return 1
    while read -r component folder; do PREPARED[$component]=$folder; done <<<"$lines"
}
