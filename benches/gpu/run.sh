#!/usr/bin/env bash
# Checks and measures on a machine with an NVIDIA GPU, from the folder that `cargo xtask gpu-folder` makes; needs no cargo there.
#
#   run.sh OUT [PART...]
#
# writes a log of each step, the results and summary.txt into OUT. Parts, all by default:
#   check     every kernel against its reference, with the GPU's own instructions and with Ampere's; tiny models against the CPU, and on
#             two instances that hand sequences over, and what the loss of one does, on one GPU and, where there are two, on both; on two
#             GPUs, layers shared and split
#   accuracy  MODEL (a folder or GGUF file; default: the downloaded default model) against single precision on the CPU
#   llama     the shape of Llama 3 8B against transformers, where python3 has it (LAYERS=32 of it, which take 16 GB in TMPDIR)
#   sanitize  compute-sanitizer's memcheck and racecheck on the kernel checks, side by side, where it is installed
#   bench     kernels and whole steps beside their floors
# Exits with 1 if a step failed. What could not be run is listed as such.
set -uo pipefail

out=${1:?usage: run.sh OUT [check] [accuracy] [llama] [sanitize] [bench]}
shift
parts=${*:-check accuracy llama sanitize bench}
here=$(cd "$(dirname "$0")" && pwd)
cache=${STALLFREE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stallfree}
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}:$cache/libraries"
export PATH="$PATH:/usr/local/cuda/bin"
mkdir -p "$out"
: >"$out/summary.txt"

note() { printf '%s\n' "$*" | tee -a "$out/summary.txt"; }

# step NAME SECONDS COMMAND...: runs it with a time limit, its output into NAME.log.
step() {
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
        note "ok    $name, $((SECONDS - start)) s"
    else
        note "FAIL  $name, $((SECONDS - start)) s: $(tail -n 1 "$out/$name.log")"
    fi
}

step doctor 60 "$here/stallfree" doctor
"$here/stallfree" doctor --json >"$out/doctor.json" || note "FAIL  doctor --json"
model=${MODEL:-$(find "$cache/models" -name '*.gguf' 2>/dev/null | head -n 1)}

for part in $parts; do
    case $part in
    check)
        step kernels 300 "$here/gpu_check" check
        step kernels-sm80 300 "$here/gpu_check" check sm80
        step parity 300 "$here/gpu_parity"
        step hand-over 300 "$here/gpu_hand_over" check
        step lose-prefill 120 "$here/gpu_hand_over" lose prefill
        step lose-decode 120 "$here/gpu_hand_over" lose decode
        if [ "$(nvidia-smi -L | wc -l)" -ge 2 ]; then
            step ranks 120 "$here/gpu_ranks"
            step ranks-pp 120 "$here/gpu_ranks" pp
        else
            note "not run: ranks; they need two GPUs"
        fi
        ;;
    accuracy)
        if [ -n "$model" ]; then
            step accuracy 600 "$here/teacher_forced" compare "$model"
        else
            note "not run: accuracy; set MODEL to a model's folder or GGUF file"
        fi
        ;;
    llama)
        if python3 -c 'import torch, transformers, safetensors' 2>/dev/null; then
            step llama 600 python3 "$here/llama_parity.py" --layers "${LAYERS:-32}"
        else
            note "not run: llama; python3 has no torch, transformers and safetensors"
        fi
        ;;
    sanitize)
        if command -v compute-sanitizer >/dev/null; then
            # cuBLASLt's own barriers look like races, so its kernels are left out of that one.
            for path in '' sm80; do
                step "memcheck${path:+-$path}" 900 compute-sanitizer --tool memcheck --error-exitcode 1 "$here/gpu_check" check $path &
                for family in rows skinny_gemm decode_gemm attention sampling; do
                    step "racecheck-$family${path:+-$path}" 900 \
                        compute-sanitizer --tool racecheck --error-exitcode 1 "$here/gpu_check" check "$family" small $path &
                done
                wait
            done
        else
            note "not run: sanitize; there is no compute-sanitizer"
        fi
        ;;
    bench)
        # The folder has the model's shape, but allows contexts that rows of 8,192 and 16,000 tokens need. Steps are as large as vLLM's are
        # by default on such a GPU.
        step bench-kernels 300 "$here/gpu_check" bench
        step bench-hand-over 300 "$here/gpu_hand_over" measure "$here/llama-3-8b"
        step bench-step 600 "$here/stallfree" bench step "$here/llama-3-8b" --load-format dummy --device cuda \
            --max-num-batched-tokens 8192 --max-num-seqs 512 --result-dir "$out"
        step bench-step-sm80 300 "$here/stallfree" bench step "$here/llama-3-8b" --load-format dummy --device cuda --kernels sm80 \
            --decode 8 --prefill 1x2048 --mix 0 --result-dir "$out/sm80"
        ;;
    *)
        note "FAIL  there is no part $part"
        ;;
    esac
done
! grep -q '^FAIL' "$out/summary.txt"
