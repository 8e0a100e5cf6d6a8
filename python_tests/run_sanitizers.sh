#!/usr/bin/env bash
# The op tests with the extension built under AddressSanitizer and UndefinedBehaviorSanitizer (gcc).
# Usage: python_tests/run_sanitizers.sh [pytest arguments], in an environment with torch, pybind11, ninja and pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r setup.py pyproject.toml README.md LICENSE csrc ahkernels python_tests "$work"
cd "$work" # not the repository, whose own build would be found first

rm -f ahkernels/*.so
AHKERNELS_SANITIZE="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1" \
  python setup.py -q build_ext --inplace

# torch is not built with the sanitizers: their runtime has to come first, and torch's own leaks are not ours.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:protect_shadow_gap=0
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH="$work"
python - <<'EOF'
import sys
import ahkernels
print("testing", ahkernels.__file__, "under", sys.version.split()[0])
EOF
for capability in $(python -c "import ahkernels; print(*ahkernels.build_info()['cpu_capability'])"); do
  echo "== $capability"
  AHKERNELS_CPU_CAPABILITY=$capability python -m pytest -q -p no:cacheprovider python_tests/ops/test_ops.py \
    -k "not plain" "$@"
done
