// Errors as sentences.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace ahkernels::cpu {

template <class... Parts>
std::string sentence_of(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  return sentence.str();
}

}  // namespace ahkernels::cpu

// Throws what RuntimeError is in Python unless the condition holds. The parts of the message are made for errors alone.
// torch's own check would put the name of the source file before them.
#define AHK_REQUIRE(condition, ...)                                                         \
  do {                                                                                      \
    if (!(condition)) throw std::runtime_error(::ahkernels::cpu::sentence_of(__VA_ARGS__)); \
  } while (false)
