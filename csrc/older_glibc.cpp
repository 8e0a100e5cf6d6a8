// Lets a library that was built on a new Linux run on an older one.
//
// The inline code of shared pointers asks this variable, which glibc has from 2.32 on, whether they may count without
// atomic instructions. Nothing else that is used here needs a glibc newer than torch's own. The answer "no" is always
// right, and costs nothing beside torch, which has threads.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
