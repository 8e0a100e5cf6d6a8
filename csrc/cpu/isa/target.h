// AHK_TARGET_BEGIN(isa) and AHK_TARGET_END: the code between them is compiled for that instruction set. Standard
// headers must be included before, or their inline functions would be compiled for it as well, and the linker might
// keep that copy for all.
#pragma once

#define AHK_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define AHK_TARGET_BEGIN(isa) AHK_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define AHK_TARGET_END AHK_PRAGMA(clang attribute pop)
#else
#define AHK_TARGET_BEGIN(isa) AHK_PRAGMA(GCC push_options) AHK_PRAGMA(GCC target(isa))
#define AHK_TARGET_END AHK_PRAGMA(GCC pop_options)
#endif
