#!/usr/bin/env bash
# Compares the CPU ops, built without torch, with plain loops on random problems (walks.cpp), under sanitizers, and
# counts the memory that they hold (held_memory.cpp).
#
# Usage: python_tests/native/run_walks.sh [SECONDS [SANITIZERS]]
#
# The seconds, 20 by default, are shared by the instruction sets of this processor. SANITIZERS are address,undefined by
# default; other choices are thread, and none, which compiles in a third of the time and tries ten times as many
# problems. Where CXX is a clang++, libFuzzer makes the problems up and keeps in build/walks/corpus those that reach code
# that the others do not; other compilers have random ones. (clang++ 16 crashes on vectors of bf16 under sanitizers; 19
# does not.) A problem that fails is left in build/walks, and runs again as the argument of the program there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=${1:-20} sanitizers=${2:-address,undefined} compiler=${CXX:-c++}
if [[ ! $seconds =~ ^[1-9][0-9]*$ ]]; then
  echo "SECONDS: expected a whole number above 0, got '$seconds'" >&2
  exit 2
fi
options=(-std=c++20 -O1 -g1 -Wall -Wextra -Werror -DAHK_TEST_MEMORY_LIMITS -Ipython_tests/native/without_torch -Icsrc
  -fno-omit-frame-pointer -pthread)
if [[ $sanitizers != none ]]; then options+=("-fsanitize=$sanitizers" -fno-sanitize-recover=all); fi
if [[ $compiler == *clang* ]]; then
  options+=(-Wno-deprecated-declarations) # of libstdc++ itself, whose pragmas clang++ passes over
  coverage=-fsanitize=fuzzer-no-link walks=(walks.o) driver=-fsanitize=fuzzer limit=(-max_len=256 -print_final_stats=1)
else
  coverage='' walks=(walks.o walks_driver.o) driver='' limit=()
fi

work=build/walks/$sanitizers
rm -rf "$work"
mkdir -p "$work/ops" build/walks/corpus
compile() { # FOLDER SOURCE...: as many at a time as there are processors
  local folder=$1
  shift
  printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} sh -c \
    'source=$1 object=$2/$(basename "$1" .cpp).o; shift 2; exec "$@" -c "$source" -o "$object"' \
    sh {} "$folder" $compiler "${options[@]}" $coverage
}
compile "$work/ops" csrc/cpu/*/*.cpp
compile "$work" python_tests/native/{walks,walks_driver,held_memory}.cpp
$compiler "${options[@]}" $driver "$work"/ops/*.o "${walks[@]/#/$work/}" -o "$work/walks"
if [[ $sanitizers != thread ]]; then # which counts allocations itself
  $compiler "${options[@]}" "$work"/ops/*.o "$work/held_memory.o" -o "$work/held_memory"
  "$work/held_memory"
fi

cd build/walks
: >empty # libFuzzer takes no device for a file
capabilities=()
for capability in amx avx512bf16 avx512 avx2 portable; do
  said=$(AHKERNELS_CPU_CAPABILITY=$capability "$sanitizers/walks" empty 2>&1) || true
  grep -q 'AHKERNELS_CPU_CAPABILITY: expected' <<<"$said" || capabilities+=("$capability")
done
for capability in "${capabilities[@]}"; do
  echo "== $sanitizers, $capability"
  share=$((seconds / ${#capabilities[@]}))
  if [[ $compiler == *clang* ]]; then
    AHKERNELS_CPU_CAPABILITY=$capability "$sanitizers/walks" -max_total_time="$share" "${limit[@]}" corpus
  else
    AHKERNELS_CPU_CAPABILITY=$capability "$sanitizers/walks" "$share" "$RANDOM"
  fi
done
