// Compile what lies between the two for another instruction set than the file's own. Standard headers must be included
// before, or their inline functions would be compiled for it as well and might be the copy that the linker keeps.
#pragma once

#define AHK_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define AHK_TARGET_BEGIN(isa) AHK_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define AHK_TARGET_END AHK_PRAGMA(clang attribute pop)
#else
#define AHK_TARGET_BEGIN(isa) AHK_PRAGMA(GCC push_options) AHK_PRAGMA(GCC target(isa))
#define AHK_TARGET_END AHK_PRAGMA(GCC pop_options)
#endif
