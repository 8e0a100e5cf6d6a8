// Runs walks.cpp on random bytes, for machines without libFuzzer, and shows how much memory the ops hold.
//
//   walks SECONDS SEED    random problems for so long, or with SECONDS = 0 one after the other for ever
//   walks FILE...         problems that were kept
//
// Before a problem runs, its bytes are in the file "walks-running", which is left there if the problem ends the
// program.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr size_t kBytes = 96;  // more than any problem reads

bool is_number(const std::string& word) { return word.find_first_not_of("0123456789") == std::string::npos; }

void run_random(double seconds, uint32_t seed) {
  std::mt19937 random(seed);
  const auto begin = std::chrono::steady_clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  int64_t problems = 0;
  for (; seconds == 0 || passed() < seconds; ++problems) {
    std::vector<uint8_t> bytes(kBytes);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    std::ofstream("walks-running", std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), kBytes);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::remove("walks-running");
  std::printf("%lld problems in %.0f s, seed %u: no disagreement\n", static_cast<long long>(problems), passed(), seed);
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 3 && is_number(arguments[1]) && is_number(arguments[2])) {
    run_random(std::stod(arguments[1]), static_cast<uint32_t>(std::stoul(arguments[2])));
    return 0;
  }
  for (int i = 1; i < count; ++i) {
    std::ifstream file(arguments[i], std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
  return 0;
}
