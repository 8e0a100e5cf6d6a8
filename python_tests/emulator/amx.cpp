// The tile registers of AMX in software, for processors without them. Each instruction of AMX is undefined there, and
// raises a signal: its handler carries the instruction out and goes on behind it, so that the compiled kernels run as
// they are. Linked into a program, or loaded before the extension (LD_PRELOAD).
//
// What a processor would refuse ends the process with a sentence, and so does a process that ends with tile registers
// still set up. The rest of the kernels are instructions of AVX-512, which have to be there.
#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/isa/target.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's bug 105593, in its own header
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

// Asked by csrc/cpu/isa/dispatch.cpp.
extern "C" bool ahkernels_permitted_amx() { return true; }

namespace {

[[noreturn]] void refuse(const char* instruction, const char* why) {
  std::fprintf(stderr, "AMX emulator: %s: %s\n", instruction, why);
  std::abort();
}

// ---- registers

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

struct Configuration {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Configuration) == 64);

struct Tile {
  alignas(64) std::byte row[kRows][kRowBytes];
};

std::atomic<int> threads_in_use{0};

// Those of one thread. Without a configuration everything is zero.
struct Registers {
  Configuration shape;
  Tile tiles[kTiles];

  void release() {
    if (shape.palette != 0) --threads_in_use;
    std::memset(static_cast<void*>(this), 0, sizeof(*this));
  }

  void configure(const std::byte* from) {
    Configuration wanted;
    std::memcpy(&wanted, from, sizeof(wanted));
    release();
    if (wanted.palette == 0) return;
    if (wanted.palette != 1) refuse("ldtilecfg", "the palette is neither 0 nor 1");
    for (const uint8_t byte : wanted.reserved) {
      if (byte != 0) refuse("ldtilecfg", "a reserved byte is not zero");
    }
    for (int tile = 0; tile < 16; ++tile) {
      const int rows = wanted.rows[tile], bytes = wanted.row_bytes[tile];
      if (tile >= kTiles && (rows != 0 || bytes != 0)) refuse("ldtilecfg", "a reserved byte is not zero");
      if (rows > kRows) refuse("ldtilecfg", "a tile has more than 16 rows");
      if (bytes > kRowBytes) refuse("ldtilecfg", "a tile has rows of more than 64 bytes");
      if ((rows == 0) != (bytes == 0)) refuse("ldtilecfg", "a tile has rows without bytes, or bytes without rows");
    }
    shape = wanted;
    ++threads_in_use;
  }

  Tile& tile(const char* instruction, int which) {
    if (shape.palette == 0) refuse(instruction, "the tile registers are not set up");
    if (which >= kTiles || shape.rows[which] == 0) refuse(instruction, "the configuration does not have this tile");
    if (shape.row_bytes[which] % 4 != 0) refuse(instruction, "rows are not whole numbers of 4 bytes");
    return tiles[which];
  }

  // The rows to load or to store, of a tile whose transfer may have been interrupted.
  int first_row(const char* instruction, int which) const {
    if (shape.start_row >= shape.rows[which]) refuse(instruction, "the start row lies beyond the tile");
    return shape.start_row;
  }

  void load(int which, const std::byte* from, int64_t stride) {
    Tile& to = tile("tileloadd", which);
    const int first = first_row("tileloadd", which);
    std::memset(to.row[first], 0, static_cast<size_t>(kRows - first) * kRowBytes);
    for (int r = first; r < shape.rows[which]; ++r) std::memcpy(to.row[r], from + r * stride, shape.row_bytes[which]);
    shape.start_row = 0;
  }

  void store(int which, std::byte* to, int64_t stride) {
    const Tile& from = tile("tilestored", which);
    for (int r = first_row("tilestored", which); r < shape.rows[which]; ++r) {
      std::memcpy(to + r * stride, from.row[r], shape.row_bytes[which]);
    }
    shape.start_row = 0;
  }

  void zero(int which) {
    std::memset(tile("tilezero", which).row, 0, sizeof(Tile));
    shape.start_row = 0;
  }

  // sums += a b, where `product` adds the products of one element of a with a row of b, of 4 bytes each.
  template <class Product>
  void multiply(const char* instruction, int sums, int a, int b, const Product& product) {
    if (sums == a || sums == b || a == b) refuse(instruction, "a register is named twice");
    Tile &to = tile(instruction, sums), &left = tile(instruction, a), &right = tile(instruction, b);
    if (shape.start_row != 0) refuse(instruction, "the start row is not zero");
    if (shape.rows[sums] != shape.rows[a] || shape.row_bytes[sums] != shape.row_bytes[b] ||
        shape.row_bytes[a] != 4 * shape.rows[b]) {
      refuse(instruction, "the shapes do not fit each other");
    }
    for (int m = 0; m < shape.rows[sums]; ++m) product(to.row[m], left.row[m], right, int{shape.rows[b]});
  }
};

thread_local Registers registers;

__attribute__((destructor)) void check_end() {
  if (threads_in_use == 0) return;
  std::fputs("AMX emulator: the tile registers of a thread were left set up\n", stderr);
  _exit(1);
}

// ---- products: one row of sums, of up to 16 columns; unused columns are zero in b, hence in the sums

using Row = std::byte[kRowBytes];

AHK_TARGET_BEGIN("avx512f,avx512bw")

// The bytes, or bf16, of a row that come first and second in each pair.
inline __m512i even_bytes(__m512i row) { return _mm512_srai_epi16(_mm512_slli_epi16(row, 8), 8); }
inline __m512i odd_bytes(__m512i row) { return _mm512_srai_epi16(row, 8); }
inline __m512 first_of_pairs(__m512i row) { return _mm512_castsi512_ps(_mm512_slli_epi32(row, 16)); }
inline __m512 second_of_pairs(__m512i row) {
  return _mm512_castsi512_ps(_mm512_and_si512(row, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
}

// Four signed bytes in an element.
[[gnu::noinline]] void add_int8(Row& sums, const Row& a, const Tile& b, int count) {
  __m512i sum = _mm512_load_si512(sums);
  for (int k = 0; k < count; ++k) {
    int32_t element;
    std::memcpy(&element, a + 4 * k, 4);
    const __m512i left = _mm512_set1_epi32(element), right = _mm512_load_si512(b.row[k]);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(even_bytes(left), even_bytes(right)));
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(odd_bytes(left), odd_bytes(right)));
  }
  _mm512_store_si512(sums, sum);
}

// Two bf16 in an element. First ones and second ones are summed apart, by fused operations that take denormal numbers
// as zero and make none, which is how the handler sets its own control register.
[[gnu::noinline]] void add_bfloat16(Row& sums, const Row& a, const Tile& b, int count) {
  __m512 of_first = _mm512_setzero_ps(), of_second = _mm512_setzero_ps();
  for (int k = 0; k < count; ++k) {
    int32_t element;
    std::memcpy(&element, a + 4 * k, 4);
    const __m512i left = _mm512_set1_epi32(element), right = _mm512_load_si512(b.row[k]);
    of_first = _mm512_fmadd_ps(first_of_pairs(left), first_of_pairs(right), of_first);
    of_second = _mm512_fmadd_ps(second_of_pairs(left), second_of_pairs(right), of_second);
  }
  const __m512 sum = _mm512_castsi512_ps(_mm512_load_si512(sums));
  _mm512_store_si512(sums, _mm512_castps_si512(_mm512_add_ps(sum, _mm512_add_ps(of_first, of_second))));
}

AHK_TARGET_END

constexpr unsigned kRoundToNearestWithoutDenormals = 0x9FC0;

// ---- instructions

// One with a VEX prefix of three bytes, an opcode of the map 0F 38 and operands in ModRM, SIB and a displacement.
class Instruction {
 public:
  explicit Instruction(const greg_t* registers)
      : registers_(registers), code_(reinterpret_cast<const uint8_t*>(registers[REG_RIP])) {}

  bool is_known_form() const { return code_[0] == 0xC4 && (code_[1] & 0x1F) == 2 && (code_[2] & 0x84) == 0; }
  // Opcode and mandatory prefix (0: none, 1: 66, 2: F3, 3: F2).
  int opcode() const { return code_[3] << 8 | prefix(); }
  int prefix() const { return code_[2] & 3; }

  bool in_memory() const { return mod() != 3; }
  int reg() const { return (code_[4] >> 3 & 7) | (code_[1] & 0x80 ? 0 : 8); }
  int rm() const { return (code_[4] & 7) | (code_[1] & 0x20 ? 0 : 8); }
  int vvvv() const { return ~(code_[2] >> 3) & 15; }

  int64_t length() const { return 5 + (has_sib() ? 1 : 0) + displacement_bytes(); }

  // The address without the index, which is a stride here.
  std::byte* base() const {
    int64_t address = displacement();
    if (mod() == 0 && (code_[4] & 7) == 5) {
      address += registers_[REG_RIP] + length();
    } else if (!has_sib()) {
      address += general(rm());
    } else if (!(mod() == 0 && (code_[5] & 7) == 5)) {
      address += general((code_[5] & 7) | (code_[1] & 0x20 ? 0 : 8));
    }
    return reinterpret_cast<std::byte*>(address);
  }
  int64_t stride() const {
    if (!has_sib()) return 0;
    const int index = (code_[5] >> 3 & 7) | (code_[1] & 0x40 ? 0 : 8);
    return index == 4 ? 0 : general(index) << (code_[5] >> 6);
  }

 private:
  int mod() const { return code_[4] >> 6; }
  bool has_sib() const { return in_memory() && (code_[4] & 7) == 4; }
  int displacement_bytes() const {
    if (mod() == 1) return 1;
    const int base = has_sib() ? code_[5] & 7 : code_[4] & 7;
    return mod() == 2 || (mod() == 0 && base == 5) ? 4 : 0;
  }
  int64_t displacement() const {
    const uint8_t* at = code_ + 5 + (has_sib() ? 1 : 0);
    int32_t wide = 0;
    std::memcpy(&wide, at, static_cast<size_t>(displacement_bytes()));
    return displacement_bytes() == 1 ? static_cast<int8_t>(wide) : wide;
  }
  int64_t general(int number) const {
    constexpr int kPlaces[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                               REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return registers_[kPlaces[number]];
  }

  const greg_t* registers_;
  const uint8_t* code_;
};

// Whether it is an instruction of AMX that the kernels may have.
bool carry_out(const Instruction& instruction) {
  if (!instruction.is_known_form()) return false;
  const auto memory = [&](int opcode) { return instruction.opcode() == opcode && instruction.in_memory(); };
  const auto in_registers = [&](int opcode) { return instruction.opcode() == opcode && !instruction.in_memory(); };
  if (memory(0x4900)) {
    registers.configure(instruction.base() + instruction.stride());
  } else if (memory(0x4901)) {
    std::memcpy(instruction.base() + instruction.stride(), &registers.shape, sizeof(Configuration));
  } else if (in_registers(0x4900)) {
    registers.release();
  } else if (in_registers(0x4903)) {
    registers.zero(instruction.reg());
  } else if (memory(0x4B03) || memory(0x4B01)) {  // with a hint not to keep the numbers in caches
    registers.load(instruction.reg(), instruction.base(), instruction.stride());
  } else if (memory(0x4B02)) {
    registers.store(instruction.reg(), instruction.base(), instruction.stride());
  } else if (in_registers(0x5E03)) {
    registers.multiply("tdpbssd", instruction.reg(), instruction.rm(), instruction.vvvv(), add_int8);
  } else if (in_registers(0x5C02)) {
    registers.multiply("tdpbf16ps", instruction.reg(), instruction.rm(), instruction.vvvv(), add_bfloat16);
  } else {
    return false;
  }
  return true;
}

void handle(int, siginfo_t*, void* context) {
  greg_t* general = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  _mm_setcsr(kRoundToNearestWithoutDenormals);  // until the handler returns
  const greg_t before = general[REG_RIP];
  // Those that follow come along: the signal takes longer than they do.
  for (Instruction next(general); carry_out(next); next = Instruction(general)) general[REG_RIP] += next.length();
  if (general[REG_RIP] == before) signal(SIGILL, SIG_DFL);  // it is met again
}

__attribute__((constructor)) void begin() {
  struct sigaction action = {};
  action.sa_sigaction = &handle;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace
