// Chooses the table of inner kernels by what the processor has, asked once, when it is first needed.
#include <cstdlib>
#include <stdexcept>
#include <string_view>

#include "kernel_table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

// Whether there are matrix units with bf16 and int8 products and Linux lets this process use them, which takes a
// request. A definition that is linked or loaded before this one answers instead: that of
// python_tests/emulator/amx.cpp, which carries out their instructions on other processors.
extern "C" __attribute__((weak, visibility("default"))) bool ahkernels_permitted_amx() {
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
  constexpr long kRequestPermission = 0x1023, kTileData = 18;   // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  return (edx & kNeeded) == kNeeded && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

namespace ahkernels::cpu {
namespace {

std::vector<std::string> detect() {
  std::vector<std::string> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;  // clang++ knows no "f16c" before version 17
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const bool bfloat16 = avx512 && __builtin_cpu_supports("avx512bf16");
#if defined(__linux__)
  if (bfloat16 && ahkernels_permitted_amx()) found.push_back("amx");
#endif
  if (bfloat16) found.push_back("avx512bf16");
  if (avx512) found.push_back("avx512");
  if (avx2) found.push_back("avx2");
#endif
  found.push_back("portable");

  const char* wanted = std::getenv("AHKERNELS_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return found;
  while (!found.empty() && found.front() != wanted) found.erase(found.begin());
  if (found.empty()) {
    throw std::runtime_error(
        std::string("AHKERNELS_CPU_CAPABILITY: expected amx, avx512bf16, avx512, avx2 or portable, as far as "
                    "this processor has it, got ") +
        wanted);
  }
  return found;
}

[[maybe_unused]] bool has(std::string_view name) {
  for (const std::string& capability : capabilities()) {
    if (capability == name) return true;
  }
  return false;
}

}  // namespace

const std::vector<std::string>& capabilities() {
  static const std::vector<std::string> found = detect();
  return found;
}

const TileKernels<float>& float_kernels([[maybe_unused]] const std::string& precision) {
#if defined(__x86_64__) && defined(__linux__)
  static const bool amx = has("amx");
  if (amx && precision == "medium") return amx::bfloat16_tile;
  if (amx && precision == "high") return amx::two_digits_tile;
  if (amx) return amx::three_digits_tile;
#endif
#if defined(__x86_64__)
  static const bool bfloat16 = has("avx512bf16"), avx512 = has("avx512"), avx2 = has("avx2");
  if (bfloat16 && precision == "medium") return avx512bf16::bfloat16_tile;
  if (avx512) return avx512::float_tile;
  if (avx2) return avx2::float_tile;
#endif
  return portable::float_tile;
}

const TileKernels<double>& double_kernels() {
#if defined(__x86_64__)
  static const bool avx512 = has("avx512"), avx2 = has("avx2");
  if (avx512) return avx512::double_tile;
  if (avx2) return avx2::double_tile;
#endif
  return portable::double_tile;
}

}  // namespace ahkernels::cpu
