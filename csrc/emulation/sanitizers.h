// sanitizers.h: what the emulator tells AddressSanitizer and ThreadSanitizer, through symbols that exist only where one is linked
// in.
//
// The emulator itself is never instrumented: it is the hardware. So ThreadSanitizer sees the kernels' own loads and stores, on
// behalf of one context per CUDA thread, and as edges between them only what CUDA promises: barriers and __syncwarp.
#pragma once
#include <cstddef>

extern "C" {
void __sanitizer_start_switch_fiber(void**, const void*, size_t) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) __attribute__((weak));
void __asan_poison_memory_region(const volatile void*, size_t) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void*, size_t) __attribute__((weak));
void __asan_loadN(void*, size_t) __attribute__((weak));
void __asan_storeN(void*, size_t) __attribute__((weak));
void* __tsan_get_current_fiber() __attribute__((weak));
void* __tsan_create_fiber(unsigned) __attribute__((weak));
void __tsan_switch_to_fiber(void*, unsigned) __attribute__((weak));
void __tsan_acquire(void*) __attribute__((weak));
void __tsan_release(void*) __attribute__((weak));
void __tsan_read_range(void*, size_t) __attribute__((weak));
void __tsan_write_range(void*, size_t) __attribute__((weak));
}

namespace emu {

inline bool asan() { return __asan_poison_memory_region != nullptr; }
inline bool tsan() { return __tsan_create_fiber != nullptr; }
inline void acquire(void* p) {
  if (tsan()) __tsan_acquire(p);
}
inline void release_edge(void* p) {
  if (tsan()) __tsan_release(p);
}
inline void poison(void* p, size_t bytes) {
  if (asan()) __asan_poison_memory_region(p, bytes);
}
inline void unpoison(void* p, size_t bytes) {
  if (asan()) __asan_unpoison_memory_region(p, bytes);
}

}  // namespace emu
